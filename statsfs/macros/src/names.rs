//! The rules for names and help, checked here so that a mistake is a compile error at its place.
//!
//! They are those of `statsfs::value`, which checks again at run time; a test compares the limits.

use proc_macro2::Span;
use quote::ToTokens;
use syn::{Attribute, Error, Expr, ExprLit, Lit, Meta};

/// `statsfs::value::MAX_VALUE_NAME`.
pub const MAX_VALUE_NAME: usize = 47;
/// `statsfs::value::MAX_GROUP_NAME`.
pub const MAX_GROUP_NAME: usize = 47;
/// `statsfs::value::MAX_HELP`.
pub const MAX_HELP: usize = 255;
/// `statsfs::value::MAX_VALUES`.
pub const MAX_VALUES: usize = 1024;
/// `statsfs::value::MAX_BUCKETS`.
pub const MAX_BUCKETS: u8 = 64;
/// `statsfs::value::MAX_LABEL_KEY`.
pub const MAX_LABEL_KEY: usize = 32;
/// `statsfs::value::MAX_LABEL_VALUE`.
pub const MAX_LABEL_VALUE: usize = 64;

/// Errors gathered over a whole declaration, so that one build shows all of them.
#[derive(Default)]
pub struct Errors(Option<Error>);

impl Errors {
    /// Adds an error at the tokens it is about.
    pub fn at(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.add(Error::new_spanned(tokens, message));
    }

    /// Adds an error.
    pub fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }

    /// Unwraps `result`, or keeps its error.
    pub fn keep<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// Fails if there was any error.
    pub fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Checks that `name` is `[a-z][a-z0-9_]*` of at most `max` bytes; `what` begins the message.
pub fn check_name(what: &str, name: &str, max: usize, span: Span) -> syn::Result<()> {
    let first = name.bytes().next();
    let fault = if !first.is_some_and(|b| b.is_ascii_lowercase()) {
        "does not begin with a lower-case letter".to_string()
    } else if let Some(c) = name.chars().find(|c| !is_name_char(*c)) {
        format!("has the character {c:?}; only a-z, 0-9 and _ are allowed")
    } else if name.len() > max {
        format!("is {} bytes long; at most {max} are allowed", name.len())
    } else {
        return Ok(());
    };
    Err(Error::new(span, format!("{what} {name:?} {fault}")))
}

/// Whether `c` may stand in a name or a label's value made by the derive.
pub fn is_name_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// The doc comments among `attrs` as one line: lines trimmed and joined by single spaces.
///
/// # Errors
/// A doc attribute that is not a plain string has no text that this macro could see.
pub fn one_line(attrs: &[Attribute]) -> syn::Result<String> {
    let mut words = Vec::new();
    for attr in attrs.iter().filter(|a| a.path().is_ident("doc")) {
        // `#[doc(hidden)]` and the like are not text.
        let Meta::NameValue(doc) = &attr.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &doc.value else {
            return Err(Error::new_spanned(
                &doc.value,
                "help is taken from doc comments that are plain strings; write it out",
            ));
        };
        // The leading star of each line belongs to the comment in `/** … */`, not to its text.
        words.extend(
            text.value()
                .lines()
                .map(|line| line.trim().trim_start_matches("* "))
                .flat_map(str::split_whitespace)
                .map(str::to_string),
        );
    }
    let line = words.join(" ");
    match attrs.first() {
        Some(attr) if line.contains(char::is_control) => {
            Err(Error::new_spanned(attr, "the help has control characters"))
        }
        _ => Ok(line),
    }
}

/// `IoIn` as `io_in`, `HTTPGet` as `http_get`, `X86Rdmsr` as `x86_rdmsr`.
pub fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, &c) in chars.iter().enumerate() {
        if c.is_uppercase() && i > 0 {
            let after = chars[i - 1];
            let before_lower = chars.get(i + 1).is_some_and(|c| c.is_lowercase());
            if after != '_' && (!after.is_uppercase() || before_lower) {
                snake.push('_');
            }
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_library() {
        use statsfs::value;
        assert_eq!(MAX_VALUE_NAME, value::MAX_VALUE_NAME);
        assert_eq!(MAX_GROUP_NAME, value::MAX_GROUP_NAME);
        assert_eq!(MAX_HELP, value::MAX_HELP);
        assert_eq!(MAX_VALUES, value::MAX_VALUES);
        assert_eq!(usize::from(MAX_BUCKETS), value::MAX_BUCKETS);
        assert_eq!(MAX_LABEL_KEY, value::MAX_LABEL_KEY);
        assert_eq!(MAX_LABEL_VALUE, value::MAX_LABEL_VALUE);
    }

    #[test]
    fn names_are_judged_as_the_library_does() {
        let long = "a".repeat(47);
        let longer = "a".repeat(48);
        for name in ["", "a", "_a", "1a", "a1", "a_b", "A", "aB", "a-b", "ä", "aä", &long, &longer]
        {
            assert_eq!(
                check_name("value", name, 47, Span::call_site()).is_ok(),
                statsfs::value::is_value_name(name, 47),
                "{name:?}"
            );
        }
        let error = check_name("value", "a-b", 47, Span::call_site()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "value \"a-b\" has the character '-'; only a-z, 0-9 and _ are allowed"
        );
    }

    #[test]
    fn snake_case_splits_words() {
        for (camel, snake) in [
            ("IoIn", "io_in"),
            ("Hlt", "hlt"),
            ("MmioRead", "mmio_read"),
            ("HTTPGet", "http_get"),
            ("SetTPR", "set_tpr"),
            ("X86Rdmsr", "x86_rdmsr"),
            ("S390Sieic", "s390_sieic"),
            ("A", "a"),
            ("Io_In", "io_in"),
            ("io_in", "io_in"),
        ] {
            assert_eq!(snake_case(camel), snake);
        }
    }

    #[test]
    fn doc_comments_become_one_line() {
        let item: syn::ItemStruct = syn::parse_quote! {
            /// First line,
            ///   second  line.
            ///
            /** Block
              * comment. */
            #[doc(hidden)]
            #[allow(dead_code)]
            struct S;
        };
        assert_eq!(one_line(&item.attrs).unwrap(), "First line, second line. Block comment.");
        let item: syn::ItemStruct = syn::parse_quote!(
            #[doc = concat!("a", "b")]
            struct S;
        );
        assert!(one_line(&item.attrs).unwrap_err().to_string().contains("plain strings"));
    }
}
