//! A checked declaration to Rust.

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{Attribute, LitStr};

use crate::check::check;
use crate::names::{MAX_BUCKETS, one_line};
use crate::parse::{Cell, Declaration, Declarations, Field, Kind};

/// Expands everything in one `stats!`.
///
/// # Errors
/// What is wrong with the declaration, at its place.
pub fn stats(tokens: TokenStream) -> syn::Result<TokenStream> {
    let Declarations(declarations) = syn::parse2(tokens)?;
    let mut errors = crate::names::Errors::default();
    for declaration in &declarations {
        errors.keep(check(declaration));
    }
    errors.finish()?;
    declarations.iter().map(group).collect()
}

/// Whether the field is one of the latched cells.
fn is_latched(declaration: &Declaration, field: &Field) -> bool {
    declaration.consistent && field.cell.kind == Kind::Counter
}

fn group(declaration: &Declaration) -> syn::Result<TokenStream> {
    let Declaration { ident, vis, consistent, group, attrs, .. } = declaration;
    let cfgs: Vec<&Attribute> = attrs.iter().filter(|a| a.path().is_ident("cfg")).collect();
    let others: Vec<&Attribute> = attrs.iter().filter(|a| !a.path().is_ident("doc")).collect();
    let latched_ident = format_ident!("{ident}Latched");

    let mut plain_fields = Vec::new();
    let mut latched_fields = Vec::new();
    let mut pushes = Vec::new();
    let mut asserts = Vec::new();
    for field in &declaration.fields {
        let latched = is_latched(declaration, field);
        let owner = if latched { &latched_ident } else { ident };
        pushes.push(push(field, owner, latched)?);
        asserts.push(assertions(declaration, field)?);
        let code = field_code(declaration, field);
        if latched { &mut latched_fields } else { &mut plain_fields }.push(code);
    }

    let latched_doc = format!(
        "The cells of [`{ident}`] that change together: reachable inside `Slot::update` only, and \
         read as one."
    );
    let latched_struct = consistent.then(|| {
        quote! {
            #[doc = #latched_doc]
            #(#others)*
            #[repr(C, align(8))]
            #vis struct #latched_ident { #(#latched_fields)* }

            #(#cfgs)*
            impl ::statsfs::value::Consistent for #ident {}
        }
    });
    let latched_type =
        if *consistent { quote!(#latched_ident) } else { quote!(::statsfs::value::NoCells) };
    let latched_size =
        if *consistent { quote!(::core::mem::size_of::<#latched_ident>()) } else { quote!(0) };

    let help = one_line(attrs)?;
    let prefix = declaration.prefix.as_ref().map(LitStr::value).unwrap_or_default();
    let failed = format!("the group {:?} declared by `stats!` is not valid: {{}}", group.value());
    Ok(quote! {
        #(#attrs)*
        #[repr(C)]
        #vis struct #ident { #(#plain_fields)* }

        #latched_struct

        // SAFETY: both structs are `repr(C)` and made of cells of `statsfs::cell` alone (or empty),
        // and the description below takes types, offsets and sizes from the compiler.
        #(#cfgs)*
        unsafe impl ::statsfs::value::Group for #ident {
            type Latched = #latched_type;

            fn descriptor() -> &'static ::std::sync::Arc<::statsfs::value::GroupDescriptor> {
                static DESCRIPTOR: ::std::sync::LazyLock<
                    ::std::sync::Arc<::statsfs::value::GroupDescriptor>,
                > = ::std::sync::LazyLock::new(|| {
                    let mut values = ::std::vec::Vec::new();
                    #(#pushes)*
                    match ::statsfs::value::GroupDescriptor::new(
                        #group,
                        #prefix,
                        #help,
                        values,
                        #latched_size,
                        ::core::mem::size_of::<#ident>(),
                    ) {
                        ::core::result::Result::Ok(group) => ::std::sync::Arc::new(group),
                        ::core::result::Result::Err(error) => ::core::panic!(#failed, error),
                    }
                });
                &DESCRIPTOR
            }
        }

        #(#cfgs)*
        const _: () = {
            ::core::assert!(
                ::core::mem::size_of::<#ident>() <= ::statsfs::value::MAX_AREA,
                "the plain cells of the group take more than MAX_AREA bytes"
            );
            ::core::assert!(
                #latched_size <= ::statsfs::value::MAX_AREA,
                "the latched cells of the group take more than MAX_AREA bytes"
            );
            #(#asserts)*
        };
    })
}

fn field_code(declaration: &Declaration, field: &Field) -> TokenStream {
    let Field { attrs, ident, .. } = field;
    let vis = match &field.vis {
        syn::Visibility::Inherited => &declaration.vis,
        own => own,
    };
    let ty = field_type(field);
    quote!(#(#attrs)* #vis #ident: #ty,)
}

fn field_type(field: &Field) -> TokenStream {
    let cell = cell_type(&field.cell, field);
    match &field.labels {
        None => cell,
        Some(labels) => quote! {
            ::statsfs::cell::PerLabel<
                #cell, #labels, { <#labels as ::statsfs::value::LabelSet>::NAMES.len() }
            >
        },
    }
}

fn cell_type(cell: &Cell, field: &Field) -> TokenStream {
    let things = format_ident!("Things");
    let unit = cell.unit.as_ref().unwrap_or(&things);
    let scalar = |name: &str, int: &str| {
        let name = format_ident!("{name}");
        let int = cell.int.clone().unwrap_or_else(|| format_ident!("{int}"));
        quote!(::statsfs::cell::#name<::core::primitive::#int, ::statsfs::cell::#unit>)
    };
    match cell.kind {
        Kind::Counter => scalar("Counter", "u64"),
        Kind::Gauge => scalar("Gauge", "i64"),
        Kind::Peak => scalar("Peak", "u64"),
        Kind::Flag => quote!(::statsfs::cell::Flag),
        Kind::Histogram => {
            let buckets = field
                .options
                .buckets
                .as_ref()
                .and_then(|n| n.base10_parse::<u8>().ok())
                .unwrap_or(MAX_BUCKETS);
            let buckets = Literal::usize_suffixed(buckets.into());
            quote!(::statsfs::cell::Histogram<::statsfs::cell::#unit, #buckets>)
        }
    }
}

/// The statement that adds the field's value, or values, to `values`.
fn push(field: &Field, owner: &Ident, latched: bool) -> syn::Result<TokenStream> {
    let ident = &field.ident;
    let name = field.name();
    let help = one_line(&field.attrs)?;
    let cell = cell_type(&field.cell, field);
    let semantics = match field.cell.kind {
        Kind::Counter | Kind::Histogram => quote!(Cumulative),
        Kind::Gauge | Kind::Flag => quote!(Floating),
        Kind::Peak => quote!(Peak),
    };
    let area = if latched { quote!(Latched) } else { quote!(Plain) };

    let mut options = TokenStream::new();
    if let Some(states) = &field.options.states {
        // Before the aggregates, which there are none of unless they are named.
        options.extend(quote! {
            .states(<#states as ::statsfs::value::LabelSet>::NAMES.iter().copied())
        });
    }
    if let Some(aggregate) = &field.options.aggregate {
        let kinds = aggregate.kinds.iter().map(|kind| {
            let kind = match kind.to_string().as_str() {
                "zero" => "COUNT_ZERO".to_string(),
                "nonzero" => "COUNT_NONZERO".to_string(),
                other => other.to_uppercase(),
            };
            format_ident!("{kind}")
        });
        options.extend(quote! {
            .aggregate(
                ::statsfs::value::Aggregations::NONE
                    #(.union(::statsfs::value::Aggregations::#kinds))*
            )
        });
    }
    if let Some(mode) = &field.options.mode {
        options.extend(quote!(.mode(#mode)));
    }
    if let Some(family) = &field.options.family {
        options.extend(quote!(.family(#family)));
    } else if field.labels.is_some() {
        // Values that a label tells apart are one family, whatever it is called.
        options.extend(quote!(.family(#name)));
    }
    if let Some(label) = &field.options.label
        && let Some((key, value)) = label.value().split_once('=')
    {
        options.extend(quote!(.label(#key, #value)));
    }

    let Some(labels) = &field.labels else {
        return Ok(quote! {
            values.push((
                ::statsfs::value::Descriptor::new(
                    #name,
                    <#cell as ::statsfs::cell::CellType>::TYPE,
                    ::statsfs::value::Semantics::#semantics,
                )
                .unit(<#cell as ::statsfs::cell::CellType>::UNIT)
                .help(#help)
                #options,
                ::statsfs::value::Place {
                    area: ::statsfs::value::Area::#area,
                    offset: ::core::mem::offset_of!(#owner, #ident) as u32,
                },
            ));
        });
    };
    let (before, after) = help.split_once("{}").unwrap_or((&help, ""));
    let prefix = format!("{name}_");
    let set = quote!(<#labels as ::statsfs::value::LabelSet>);
    Ok(quote! {
        for index in 0..#set::NAMES.len() {
            let label = #set::NAMES[index];
            values.push((
                ::statsfs::value::Descriptor::new(
                    [#prefix, label].concat(),
                    <#cell as ::statsfs::cell::CellType>::TYPE,
                    ::statsfs::value::Semantics::#semantics,
                )
                .unit(<#cell as ::statsfs::cell::CellType>::UNIT)
                .help([#before, #set::HELP[index], #after].concat())
                .label(#set::KEY, label)
                #options,
                ::statsfs::value::Place {
                    area: ::statsfs::value::Area::#area,
                    offset: (::core::mem::offset_of!(#owner, #ident)
                        + index * ::core::mem::size_of::<#cell>()) as u32,
                },
            ));
        }
    })
}

/// Checks that need the label sets, which this macro does not see: left to the compiler.
fn assertions(declaration: &Declaration, field: &Field) -> syn::Result<TokenStream> {
    let states = states_fit(field);
    let Some(labels) = &field.labels else { return Ok(states) };
    let span = field.ident.span();
    let name = field.name();
    let name_length = name.len() + 1;
    let help_length = one_line(&field.attrs)?.len().saturating_sub("{}".len());
    let set = quote!(<#labels as ::statsfs::value::LabelSet>);

    let too_long = format!("a value name {name}_<label> is longer than MAX_VALUE_NAME bytes");
    let help_too_long = format!("the help of {name} with a label's own is over MAX_HELP bytes");
    let lengths_differ = format!("the label set of {name} has not one help for each label");
    // A field `user_exit_hlt` beside `user_exit: PerLabel<Counter, Reason>` is one file twice if the
    // set has the label `hlt`.
    let prefix = format!("{name}_");
    let clashes = declaration.fields.iter().filter_map(|other| {
        let other_name = other.name();
        if other.labels.is_some() {
            return None;
        }
        let rest = other_name.strip_prefix(&prefix)?;
        let bytes = Literal::byte_string(rest.as_bytes());
        let clash = format!("value {other_name} is also made by {name} with its label {rest}");
        Some(quote_spanned! {other.ident.span()=>
            let rest: &[u8] = #bytes;
            let mut same = label.len() == rest.len();
            let mut at = 0;
            while same && at < rest.len() {
                same = label[at] == rest[at];
                at += 1;
            }
            ::core::assert!(!same, #clash);
        })
    });
    Ok(quote_spanned! {span=>
        #states
        ::core::assert!(#set::NAMES.len() == #set::HELP.len(), #lengths_differ);
        let mut index = 0;
        while index < #set::NAMES.len() {
            let label = #set::NAMES[index].as_bytes();
            ::core::assert!(
                #name_length + label.len() <= ::statsfs::value::MAX_VALUE_NAME, #too_long
            );
            ::core::assert!(
                #help_length + #set::HELP[index].len() <= ::statsfs::value::MAX_HELP,
                #help_too_long
            );
            #(#clashes)*
            index += 1;
        }
    })
}

/// The check that the names of a field's states are not too long together.
fn states_fit(field: &Field) -> TokenStream {
    let Some(states) = &field.options.states else { return TokenStream::new() };
    let too_long = format!("the names of the states of {} are over MAX_STATES bytes", field.name());
    quote_spanned! {field.ident.span()=>
        {
            let names = <#states as ::statsfs::value::LabelSet>::NAMES;
            let (mut index, mut length) = (0, 0);
            while index < names.len() {
                length += names[index].len() + 1;
                index += 1;
            }
            ::core::assert!(length <= ::statsfs::value::MAX_STATES + 1, #too_long);
        }
    }
}
