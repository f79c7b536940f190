//! `#[derive(LabelSet)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, LitStr, Variant};

use crate::names::{
    Errors, MAX_HELP, MAX_LABEL_KEY, MAX_VALUES, check_name, is_name_char, one_line, snake_case,
};

/// Expands the derive.
///
/// # Errors
/// What is wrong with the enum, at its place.
pub fn label_set(tokens: TokenStream) -> syn::Result<TokenStream> {
    let input: DeriveInput = syn::parse2(tokens)?;
    let ident = &input.ident;
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(ident, "a set of labels is an enum without fields"));
    };
    let mut errors = Errors::default();
    if !input.generics.params.is_empty() {
        errors.at(&input.generics, "a set of labels has no generic parameters");
    }
    if data.variants.is_empty() || data.variants.len() > MAX_VALUES {
        errors.at(ident, format!("a set of labels has 1 to {MAX_VALUES} variants"));
    }
    let key = errors.keep(key(&input)).unwrap_or_default();

    let mut names: Vec<String> = Vec::new();
    let mut helps = Vec::new();
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            errors.at(&variant.fields, "a set of labels is an enum without fields");
        }
        // The index of a label is its discriminant: one instruction, and known to be in bounds.
        if let Some((_, value)) = &variant.discriminant {
            errors
                .at(value, "a label has no number of its own: its place in the enum is its index");
        }
        let name = errors.keep(name(variant)).unwrap_or_default();
        if !name.is_empty() && names.contains(&name) {
            errors.at(&variant.ident, format!("label {name:?} is in the set twice"));
        }
        names.push(name);
        let help = errors.keep(one_line(&variant.attrs)).unwrap_or_default();
        if help.is_empty() {
            errors.at(&variant.ident, "a doc comment is missing: it is the label's help");
        }
        if help.len() > MAX_HELP {
            errors.at(&variant.ident, format!("the help is longer than {MAX_HELP} bytes"));
        }
        helps.push(help);
    }
    errors.finish()?;
    Ok(quote! {
        impl ::statsfs::value::LabelSet for #ident {
            const KEY: &'static str = #key;
            const NAMES: &'static [&'static str] = &[#(#names),*];
            const HELP: &'static [&'static str] = &[#(#helps),*];

            #[inline(always)]
            fn index(self) -> usize {
                self as usize
            }
        }
    })
}

/// The key in `#[labels(key = "…")]`.
fn key(input: &DeriveInput) -> syn::Result<String> {
    let mut key: Option<LitStr> = None;
    for attr in input.attrs.iter().filter(|a| a.path().is_ident("labels")) {
        attr.parse_nested_meta(|meta| {
            if !meta.path.is_ident("key") {
                return Err(meta.error("expected `key = \"…\"`"));
            }
            if key.replace(meta.value()?.parse()?).is_some() {
                return Err(meta.error("the key is given twice"));
            }
            Ok(())
        })?;
    }
    let key = key.ok_or_else(|| {
        Error::new_spanned(&input.ident, "the label's key is missing: add #[labels(key = \"…\")]")
    })?;
    check_name("label key", &key.value(), MAX_LABEL_KEY, key.span())?;
    Ok(key.value())
}

/// The label's value: `#[label("…")]`, or the variant's name in snake case.
fn name(variant: &Variant) -> syn::Result<String> {
    let mut given: Option<LitStr> = None;
    for attr in variant.attrs.iter().filter(|a| a.path().is_ident("label")) {
        if given.replace(attr.parse_args()?).is_some() {
            return Err(Error::new_spanned(attr, "the label's value is given twice"));
        }
    }
    let (name, span) = match given {
        Some(name) => (name.value(), name.span()),
        None => (snake_case(&variant.ident.to_string()), variant.ident.span()),
    };
    // It ends the name of a value, which is a file.
    if name.is_empty() || !name.chars().all(is_name_char) {
        return Err(Error::new(span, format!("label {name:?} is not [a-z0-9_]+")));
    }
    Ok(name)
}
