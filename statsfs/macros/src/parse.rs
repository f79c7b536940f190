//! The syntax of `stats!`: tokens to [`Declaration`]s.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Error, GenericArgument, Ident, LitInt, LitStr, Path, PathArguments, Token, Type,
    TypePath, Visibility, braced, bracketed, token,
};

/// Everything inside one `stats! { … }`.
pub struct Declarations(pub Vec<Declaration>);

/// One group.
pub struct Declaration {
    pub attrs: Vec<Attribute>,
    pub vis: Visibility,
    pub consistent: bool,
    pub ident: Ident,
    pub group: LitStr,
    pub prefix: Option<LitStr>,
    pub fields: Vec<Field>,
}

/// One field: a value, or a family of values.
pub struct Field {
    pub attrs: Vec<Attribute>,
    pub vis: Visibility,
    pub ident: Ident,
    pub cell: Cell,
    /// The label set of a `PerLabel` field.
    pub labels: Option<Type>,
    pub options: Options,
}

impl Field {
    /// The name of the value, or what the names of the values begin with.
    pub fn name(&self) -> String {
        self.ident.unraw().to_string()
    }
}

/// What a cell does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Peak,
    Flag,
    Histogram,
}

impl Kind {
    /// Whether values of this kind are cumulative.
    pub fn is_cumulative(self) -> bool {
        matches!(self, Self::Counter | Self::Histogram)
    }
}

/// A cell's type as it was written.
pub struct Cell {
    pub kind: Kind,
    pub int: Option<Ident>,
    pub unit: Option<Ident>,
}

/// The options in braces after a field's type.
#[derive(Default)]
pub struct Options {
    pub aggregate: Option<Aggregate>,
    pub family: Option<LitStr>,
    pub label: Option<LitStr>,
    pub mode: Option<LitInt>,
    pub buckets: Option<LitInt>,
    /// The label set whose names are those of the value's numbers.
    pub states: Option<Type>,
}

/// `aggregate: none`, `aggregate: sum` or `aggregate: [sum, max]`.
pub struct Aggregate {
    /// The kinds; none for `none`.
    pub kinds: Vec<Ident>,
}

const INTS: [&str; 8] = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"];
const UNITS: [&str; 7] =
    ["Things", "Bytes", "Cycles", "Seconds", "Milliseconds", "Microseconds", "Nanoseconds"];
const AGGREGATES: [&str; 6] = ["sum", "min", "max", "avg", "zero", "nonzero"];

impl Parse for Declarations {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut all = Vec::new();
        while !input.is_empty() {
            all.push(input.parse()?);
        }
        if all.is_empty() {
            return Err(input.error("nothing is declared; write `struct Name: \"group\" { … }`"));
        }
        Ok(Self(all))
    }
}

impl Parse for Declaration {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let consistent = if input.peek(Token![struct]) {
            false
        } else {
            let word: Ident = input.call(Ident::parse_any)?;
            if word != "consistent" {
                return Err(Error::new_spanned(word, "expected `struct` or `consistent struct`"));
            }
            true
        };
        input.parse::<Token![struct]>()?;
        let ident: Ident = input.parse()?;
        if input.peek(Token![<]) {
            return Err(input.error("a group has no generic parameters: it has one description"));
        }
        if !input.peek(Token![:]) {
            return Err(Error::new_spanned(
                &ident,
                format!("the group's name is missing: write `struct {ident}: \"group\" {{ … }}`"),
            ));
        }
        input.parse::<Token![:]>()?;
        let group = input.parse()?;
        let mut prefix = None;
        if input.peek(Token![,]) {
            input.parse::<Token![,]>()?;
            let word: Ident = input.parse()?;
            if word != "prefix" {
                return Err(Error::new_spanned(word, "expected `prefix \"…\"`"));
            }
            prefix = Some(input.parse()?);
        }
        let body;
        braced!(body in input);
        let fields = Punctuated::<Field, Token![,]>::parse_terminated(&body)?.into_iter().collect();
        Ok(Self { attrs, vis, consistent, ident, group, prefix, fields })
    }
}

impl Parse for Field {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let ident = input.parse()?;
        input.parse::<Token![:]>()?;
        let (cell, labels) = field_type(input.parse()?)?;
        let options = if input.peek(token::Brace) { input.parse()? } else { Options::default() };
        Ok(Self { attrs, vis, ident, cell, labels, options })
    }
}

/// The path and generic arguments of a type that must be a plain path.
fn path_of(ty: Type, expected: &str) -> syn::Result<(Path, Vec<GenericArgument>)> {
    let Type::Path(TypePath { qself: None, path }) = ty else {
        return Err(Error::new_spanned(ty, expected));
    };
    let args = match &path.segments[path.segments.len() - 1].arguments {
        PathArguments::None => Vec::new(),
        PathArguments::AngleBracketed(args) => args.args.iter().cloned().collect(),
        PathArguments::Parenthesized(args) => return Err(Error::new_spanned(args, expected)),
    };
    Ok((path, args))
}

const FIELD_TYPES: &str = "a value is a Counter, Gauge, Peak, Flag, Histogram, or PerLabel of one";

fn field_type(ty: Type) -> syn::Result<(Cell, Option<Type>)> {
    let (path, args) = path_of(ty, FIELD_TYPES)?;
    if path.segments[path.segments.len() - 1].ident != "PerLabel" {
        return Ok((cell_type(path, args)?, None));
    }
    match <[GenericArgument; 2]>::try_from(args) {
        Ok([GenericArgument::Type(cell), GenericArgument::Type(labels)]) => {
            let (path, args) = path_of(cell, FIELD_TYPES)?;
            if path.segments[path.segments.len() - 1].ident == "PerLabel" {
                return Err(Error::new_spanned(
                    path,
                    "a value has one label: PerLabel of PerLabel",
                ));
            }
            Ok((cell_type(path, args)?, Some(labels)))
        }
        _ => Err(Error::new_spanned(
            path,
            "PerLabel takes a cell and a set of labels: PerLabel<Counter, Reason>",
        )),
    }
}

fn cell_type(path: Path, args: Vec<GenericArgument>) -> syn::Result<Cell> {
    let name = &path.segments[path.segments.len() - 1].ident;
    let kind = match name.to_string().as_str() {
        "Counter" => Kind::Counter,
        "Gauge" => Kind::Gauge,
        "Peak" => Kind::Peak,
        "Flag" => Kind::Flag,
        "Histogram" => Kind::Histogram,
        _ => return Err(Error::new_spanned(name, FIELD_TYPES)),
    };
    let (mut int, mut unit) = (None, None);
    for arg in args {
        let wrong = |why: String| Err(Error::new_spanned(&arg, why));
        let GenericArgument::Type(ty) = &arg else {
            return wrong(if kind == Kind::Histogram {
                "the number of buckets is an option: Histogram<Nanoseconds> { buckets: 40 }".into()
            } else {
                "expected an integer type or a unit".into()
            });
        };
        let (path, inner) = path_of(ty.clone(), "expected an integer type or a unit")?;
        let word = path.segments[path.segments.len() - 1].ident.clone();
        let text = word.to_string();
        if kind == Kind::Flag {
            return wrong("a flag is a bool: it has neither width nor unit".into());
        } else if !inner.is_empty() {
            return wrong("expected an integer type or a unit".into());
        } else if INTS.contains(&text.as_str()) {
            if kind == Kind::Histogram {
                return wrong("the cells of a histogram are u64: name only a unit".into());
            }
            if kind == Kind::Counter && text.starts_with('i') {
                return wrong(format!("a counter only grows: u{}, or a Gauge", &text[1..]));
            }
            if int.replace(word).is_some() {
                return wrong("a second width".into());
            }
        } else if UNITS.contains(&text.as_str()) {
            if unit.replace(word).is_some() {
                return wrong("a second unit".into());
            }
        } else {
            return wrong(format!(
                "{text:?} is neither a width ({}) nor a unit ({})",
                INTS.join(", "),
                UNITS.join(", ")
            ));
        }
    }
    Ok(Cell { kind, int, unit })
}

impl Parse for Options {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let body;
        braced!(body in input);
        let mut options = Self::default();
        while !body.is_empty() {
            let name: Ident = body.call(Ident::parse_any)?;
            body.parse::<Token![:]>()?;
            let twice = match name.to_string().as_str() {
                "aggregate" => options.aggregate.replace(body.parse()?).is_some(),
                "family" => options.family.replace(body.parse()?).is_some(),
                "label" => options.label.replace(body.parse()?).is_some(),
                "mode" => options.mode.replace(body.parse()?).is_some(),
                "buckets" => options.buckets.replace(body.parse()?).is_some(),
                "states" => options.states.replace(body.parse()?).is_some(),
                _ => {
                    return Err(Error::new_spanned(
                        &name,
                        format!(
                            "unknown option {:?}; there are aggregate, family, label, mode, buckets \
                             and states",
                            name.to_string()
                        ),
                    ));
                }
            };
            if twice {
                return Err(Error::new_spanned(&name, format!("option \"{name}\" is given twice")));
            }
            if !body.is_empty() {
                body.parse::<Token![,]>()?;
            }
        }
        Ok(options)
    }
}

impl Parse for Aggregate {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let expected = || {
            format!(
                "expected none, one of {}, or several of them in brackets",
                AGGREGATES.join(", ")
            )
        };
        let known = |kind: &Ident| AGGREGATES.contains(&kind.to_string().as_str());
        if !input.peek(token::Bracket) {
            let kind: Ident = input
                .call(Ident::parse_any)
                .map_err(|error| Error::new(error.span(), expected()))?;
            if kind == "none" {
                return Ok(Self { kinds: Vec::new() });
            }
            if !known(&kind) {
                return Err(Error::new_spanned(kind, expected()));
            }
            return Ok(Self { kinds: vec![kind] });
        }
        let list;
        let brackets = bracketed!(list in input);
        let kinds: Vec<Ident> =
            Punctuated::<Ident, Token![,]>::parse_terminated(&list)?.into_iter().collect();
        if kinds.is_empty() {
            let span: Span = brackets.span.join();
            return Err(Error::new(
                span,
                "an empty set of aggregates is written `aggregate: none`",
            ));
        }
        for (i, kind) in kinds.iter().enumerate() {
            if !known(kind) {
                return Err(Error::new_spanned(kind, expected()));
            }
            if kinds[..i].contains(kind) {
                return Err(Error::new_spanned(
                    kind,
                    format!("aggregate \"{kind}\" is named twice"),
                ));
            }
        }
        Ok(Self { kinds })
    }
}
