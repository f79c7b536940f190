//! The declaration of statistics: `stats!` and `#[derive(LabelSet)]`, re-exported and documented by the
//! `statsfs` crate. Use them from there: their expansions name that crate.

use proc_macro::TokenStream;

mod check;
mod expand;
mod labels;
mod names;
mod parse;
#[cfg(test)]
mod tests;

/// Declares groups of values as structs of cells. See `statsfs::stats`.
#[proc_macro]
pub fn stats(input: TokenStream) -> TokenStream {
    expand::stats(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an enum a set of label values. See `statsfs::LabelSet`.
#[proc_macro_derive(LabelSet, attributes(labels, label))]
pub fn label_set(input: TokenStream) -> TokenStream {
    labels::label_set(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// What only the compiler can see: how a declaration and its label sets go together. Each example that
/// must not compile differs from the first one, which must, in one place.
///
/// ```
/// # use statsfs::{LabelSet, stats};
/// #[derive(Clone, Copy, LabelSet)]
/// #[labels(key = "reason")]
/// enum Reason {
///     /// it halted
///     Hlt,
/// }
/// stats! {
///     /// A group.
///     struct S: "s" {
///         /// Exits because {}.
///         exit: PerLabel<Counter, Reason>,
///         /// Other exits.
///         exit_halt: Counter,
///     }
/// }
/// ```
/// A value that the family makes too:
/// ```compile_fail,E0080
/// # use statsfs::{LabelSet, stats};
/// #[derive(Clone, Copy, LabelSet)]
/// #[labels(key = "reason")]
/// enum Reason {
///     /// it halted
///     Hlt,
/// }
/// stats! {
///     /// A group.
///     struct S: "s" {
///         /// Exits because {}.
///         exit: PerLabel<Counter, Reason>,
///         /// Other exits.
///         exit_hlt: Counter,
///     }
/// }
/// ```
/// A name over 47 bytes:
/// ```compile_fail,E0080
/// # use statsfs::{LabelSet, stats};
/// #[derive(Clone, Copy, LabelSet)]
/// #[labels(key = "reason")]
/// enum Reason {
///     /// it halted
///     HaltedForAVeryLongTimeIndeedAndWasNotSeenX,
/// }
/// stats! {
///     /// A group.
///     struct S: "s" {
///         /// Exits because {}.
///         exit: PerLabel<Counter, Reason>,
///         /// Other exits.
///         exit_halt: Counter,
///     }
/// }
/// ```
/// A label set that is not `Copy`:
/// ```compile_fail,E0277
/// # use statsfs::{LabelSet, stats};
/// #[derive(LabelSet)]
/// #[labels(key = "reason")]
/// enum Reason {
///     /// it halted
///     Hlt,
/// }
/// ```
#[cfg(doctest)]
struct CompilerChecks;
