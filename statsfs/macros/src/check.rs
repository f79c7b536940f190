//! What a declaration must keep to beyond its syntax.
//!
//! `GroupDescriptor::new` checks all of this again when the program first uses the group; here it is
//! an error at the field that is wrong, before the program exists.

use std::collections::HashMap;

use syn::{LitInt, LitStr};

use crate::names::{
    Errors, MAX_BUCKETS, MAX_GROUP_NAME, MAX_HELP, MAX_LABEL_KEY, MAX_LABEL_VALUE, MAX_VALUE_NAME,
    MAX_VALUES, check_name, one_line,
};
use crate::parse::{Declaration, Field, Kind};

/// Checks a declaration.
///
/// # Errors
/// All faults, combined.
pub fn check(declaration: &Declaration) -> syn::Result<()> {
    let mut errors = Errors::default();
    check_group(declaration, &mut errors);
    let prefix = declaration.prefix.as_ref().map(LitStr::value).unwrap_or_default();
    let mut names = HashMap::new();
    let mut in_family = HashMap::new();
    for field in &declaration.fields {
        let name = field.name();
        check_field(field, &name, &prefix, &mut errors);
        if names.insert(name.clone(), ()).is_some() {
            errors.at(&field.ident, format!("value {name:?} is declared twice"));
        }
        if let (Some(family), Some(label)) = (&field.options.family, &field.options.label)
            && let Some(other) = in_family.insert((family.value(), label.value()), name)
        {
            errors.at(
                label,
                format!("value {other:?} of family {:?} has this label too", family.value()),
            );
        }
    }
    errors.finish()
}

fn check_group(declaration: &Declaration, errors: &mut Errors) {
    let Declaration { ident, group, prefix, fields, attrs, .. } = declaration;
    errors.keep(check_name("group name", &group.value(), MAX_GROUP_NAME, group.span()));
    if let Some(prefix) = prefix {
        errors.keep(check_name("prefix", &prefix.value(), MAX_GROUP_NAME, prefix.span()));
    }
    if let Some(help) = errors.keep(one_line(attrs)) {
        if help.is_empty() {
            errors.at(ident, "a doc comment is missing: it is the group's help");
        }
        check_help_length(help.len(), ident, errors);
    }
    if let Some(attr) = attrs.iter().find(|a| a.path().is_ident("repr")) {
        errors.at(attr, "the layout of a group is always repr(C)");
    }
    if fields.is_empty() {
        errors.at(ident, "a group has at least one value");
    }
    if fields.len() > MAX_VALUES {
        errors.at(ident, format!("{} values; at most {MAX_VALUES} fit in a group", fields.len()));
    }
    if declaration.consistent && !fields.iter().any(|f| f.cell.kind == Kind::Counter) {
        errors.at(
            ident,
            "a consistent group has a counter: the other kinds are not latched; drop `consistent`",
        );
    }
}

fn check_field(field: &Field, name: &str, prefix: &str, errors: &mut Errors) {
    // A field over labels gives names that are longer by an underscore and one byte at least.
    let room = MAX_VALUE_NAME - if field.labels.is_some() { 2 } else { 0 };
    errors.keep(check_name("value name", name, room, field.ident.span()));
    if !name.starts_with(prefix) {
        errors.at(
            &field.ident,
            format!("value {name:?} does not begin with the group's prefix {prefix:?}"),
        );
    }
    if let Some(attr) = field.attrs.iter().find(|a| {
        let path = a.path();
        path.is_ident("cfg") || path.is_ident("cfg_attr")
    }) {
        errors.at(attr, "a value is not conditional: put it in a group of its own");
    }
    if let Some(help) = errors.keep(one_line(&field.attrs)) {
        check_help(field, &help, errors);
    }
    check_options(field, errors);
}

fn check_help(field: &Field, help: &str, errors: &mut Errors) {
    if help.is_empty() {
        errors.at(&field.ident, "a doc comment is missing: it is the value's help");
        return;
    }
    let mut length = help.len();
    if field.labels.is_some() {
        match help.matches("{}").count() {
            1 => length -= 2,
            0 => errors.at(
                &field.ident,
                "the help does not say what each label means: put {} where the label's own help \
                 belongs",
            ),
            _ => errors.at(&field.ident, "the help has more than one {} for the label's own help"),
        }
    }
    check_help_length(length, &field.ident, errors);
}

fn check_help_length(length: usize, ident: &syn::Ident, errors: &mut Errors) {
    if length > MAX_HELP {
        errors.at(
            ident,
            format!("the help is {length} bytes as one line; at most {MAX_HELP} are allowed"),
        );
    }
}

fn check_options(field: &Field, errors: &mut Errors) {
    let options = &field.options;
    let kind = field.cell.kind;
    if let Some(aggregate) = &options.aggregate
        && kind == Kind::Histogram
        && let Some(other) = aggregate.kinds.iter().find(|k| *k != "sum")
    {
        errors.at(other, "a histogram aggregates by sum or not at all");
    }
    if let Some(states) = &options.states {
        if kind != Kind::Gauge {
            errors.at(states, "only a gauge has states");
        }
        let mut kinds = options.aggregate.iter().flat_map(|aggregate| &aggregate.kinds);
        if let Some(other) = kinds.find(|kind| *kind != "zero" && *kind != "nonzero") {
            errors.at(other, "states are aggregated by zero and nonzero, or not at all");
        }
    }
    if let Some(family) = &options.family {
        errors.keep(check_name("family", &family.value(), MAX_VALUE_NAME, family.span()));
    }
    if let Some(label) = &options.label {
        check_label(field, label, errors);
    }
    if let Some(mode) = &options.mode {
        check_mode(kind, mode, errors);
    }
    if let Some(buckets) = &options.buckets {
        if kind != Kind::Histogram {
            errors.at(buckets, "only a histogram has buckets");
        } else if !buckets.base10_parse::<u8>().is_ok_and(|n| (2..=MAX_BUCKETS).contains(&n)) {
            errors.at(buckets, format!("a histogram has 2 to {MAX_BUCKETS} buckets"));
        }
    }
}

fn check_label(field: &Field, label: &LitStr, errors: &mut Errors) {
    if field.labels.is_some() {
        errors.at(label, "the label of a PerLabel field comes from its set of labels");
        return;
    }
    if field.options.family.is_none() {
        errors.at(label, "a label tells values of a family apart: add `family: \"…\"`");
    }
    let text = label.value();
    let Some((key, value)) = text.split_once('=') else {
        errors.at(label, format!("label {text:?} is not \"key=value\""));
        return;
    };
    errors.keep(check_name("label key", key, MAX_LABEL_KEY, label.span()));
    if value.is_empty() || value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
        errors.at(
            label,
            format!("label value {value:?} is not 1 to {MAX_LABEL_VALUE} bytes of plain text"),
        );
    }
}

fn check_mode(kind: Kind, mode: &LitInt, errors: &mut Errors) {
    // A decimal 644 is a different number; nobody means it.
    if !mode.to_string().starts_with("0o") {
        errors.at(mode, "write the mode in octal, such as 0o600");
        return;
    }
    match mode.base10_parse::<u16>() {
        Ok(bits) if bits & !0o666 != 0 => {
            errors.at(mode, "the mode has bits other than rw-rw-rw-");
        }
        Ok(bits) if bits & 0o222 != 0 && !kind.is_cumulative() => {
            errors.at(mode, "only a counter or a histogram can be cleared, and so be writable");
        }
        Ok(_) => {}
        Err(_) => errors.at(mode, "the mode has bits other than rw-rw-rw-"),
    }
}
