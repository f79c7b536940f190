//! Every message that a wrong declaration gets, and that it gets all of them at once.

use proc_macro2::TokenStream;

use crate::expand::stats;
use crate::labels::label_set;

/// The messages that the tokens get.
fn messages(result: syn::Result<TokenStream>) -> Vec<String> {
    match result {
        Ok(tokens) => panic!("accepted: {tokens}"),
        Err(error) => error.into_iter().map(|e| e.to_string()).collect(),
    }
}

fn parse(text: &str) -> TokenStream {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The messages for a group `"blk"` with these fields.
fn fields(text: &str) -> Vec<String> {
    messages(stats(parse(&format!("/// Blocks.\nstruct S: \"blk\" {{ {text} }}"))))
}

/// Asserts that the only message for these fields begins with `message`.
#[track_caller]
fn refused(text: &str, message: &str) {
    let all = fields(text);
    assert!(all.len() == 1 && all[0].starts_with(message), "{text}\n  {all:#?}\n  {message}");
}

#[test]
fn accepted_declarations_name_only_absolute_paths() {
    let tokens = stats(parse(
        r#"
        /// A.
        pub consistent struct A: "a" {
            /// B.
            b: Counter,
            /// C {}.
            c: PerLabel<Gauge<i16, Bytes>, crate::Reason> { aggregate: [min, max] },
            /// D.
            d: Histogram,
        }
        /// E.
        struct E: "e", prefix "e_" {
            /// F.
            pub e_f: Flag { mode: 0o400 },
        }
        "#,
    ))
    .unwrap();
    let file: syn::File = syn::parse2(tokens.clone()).unwrap();
    let structs: Vec<String> = file
        .items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Struct(item) => Some(item.ident.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(structs, ["A", "ALatched", "E"]);
    let text = tokens.to_string();
    for word in ["statsfs", "core", "std"] {
        assert!(text.contains(&format!(":: {word} ::")));
        for (at, _) in text.match_indices(&format!(" {word} ::")) {
            assert!(text[..at].ends_with("::"), "{}", &text[at.saturating_sub(40)..at + 40]);
        }
    }
}

#[test]
fn names() {
    refused("/// X.\n Xy: Counter", "value name \"Xy\" does not begin with a lower-case letter");
    refused("/// X.\n _x: Counter", "value name \"_x\" does not begin with a lower-case letter");
    refused("/// X.\n xY: Counter", "value name \"xY\" has the character 'Y'");
    let name = "x".repeat(48);
    refused(&format!("/// X.\n {name}: Counter"), &format!("value name {name:?} is 48 bytes long"));
    let name = "x".repeat(46);
    refused(
        &format!("/// X {{}}.\n {name}: PerLabel<Counter, L>"),
        &format!("value name {name:?} is 46 bytes long; at most 45"),
    );
    refused("/// X.\n x: Counter, /// X.\n x: Flag", "value \"x\" is declared twice");
    let all = messages(stats(parse(
        "/// B.\nstruct S: \"blk\", prefix \"blk_\" { /** R. */ reads: Counter, /** W. */ blk_w: Flag }",
    )));
    assert_eq!(all, ["value \"reads\" does not begin with the group's prefix \"blk_\""]);
    let all =
        messages(stats(parse("/// B.\nstruct S: \"Blk\", prefix \"\" { /** R. */ r: Counter }")));
    assert_eq!(
        all,
        [
            "group name \"Blk\" does not begin with a lower-case letter",
            "prefix \"\" does not begin with a lower-case letter"
        ]
    );
}

#[test]
fn raw_identifiers_are_names_without_the_prefix() {
    let tokens = stats(parse("/// B.\nstruct S: \"b\" { /** T. */ r#type: Counter }")).unwrap();
    assert!(tokens.to_string().contains("\"type\""));
}

#[test]
fn help() {
    refused("x: Counter", "a doc comment is missing: it is the value's help");
    refused("#[doc(hidden)] x: Counter", "a doc comment is missing: it is the value's help");
    let all = messages(stats(parse("struct S: \"blk\" { /** X. */ x: Counter }")));
    assert_eq!(all, ["a doc comment is missing: it is the group's help"]);
    let help = format!("/// {}\n/// {}\n", "a".repeat(127), "b".repeat(128));
    refused(&format!("{help} x: Counter"), "the help is 256 bytes as one line");
    let help = format!("/// {}\n/// {}\n", "a".repeat(127), "b".repeat(127));
    stats(parse(&format!("/// B.\nstruct S: \"b\" {{ {help} x: Counter }}"))).unwrap();
    refused("/// X.\n x: PerLabel<Counter, L>", "the help does not say what each label means");
    refused("/// {} {}\n x: PerLabel<Counter, L>", "the help has more than one {}");
    refused("#[doc = concat!()] x: Counter", "help is taken from doc comments that are plain");
    refused("/// \x1b[2J\n x: Counter", "the help has control characters");
}

#[test]
fn types() {
    const TYPES: &str = "a value is a Counter, Gauge, Peak, Flag, Histogram, or PerLabel of one";
    refused("/// X.\n x: u64", TYPES);
    refused("/// X.\n x: (Counter, Counter)", TYPES);
    refused("/// X.\n x: Vec<Counter>", TYPES);
    refused("/// X.\n x: Counter<i32>", "a counter only grows: u32, or a Gauge");
    refused("/// X.\n x: Counter<usize>", "\"usize\" is neither a width (u8, u16,");
    refused("/// X.\n x: Counter<Parsecs>", "\"Parsecs\" is neither a width");
    refused("/// X.\n x: Counter<u32, u64>", "a second width");
    refused("/// X.\n x: Counter<Bytes, Seconds>", "a second unit");
    refused("/// X.\n x: Gauge<5>", "expected an integer type or a unit");
    refused("/// X.\n x: Gauge<Bytes<u8>>", "expected an integer type or a unit");
    refused("/// X.\n x: Flag<u8>", "a flag is a bool");
    refused("/// X.\n x: Histogram<u32>", "the cells of a histogram are u64");
    refused("/// X.\n x: Histogram<Bytes, 40>", "the number of buckets is an option");
    refused("/// X.\n x: PerLabel<Counter>", "PerLabel takes a cell and a set of labels");
    refused("/// X.\n x: PerLabel<PerLabel<Counter, A>, B>", "a value has one label");
}

#[test]
fn options() {
    refused("/// X.\n x: Counter { agregate: sum }", "unknown option \"agregate\"; there are");
    refused("/// X.\n x: Counter { mode: 0o444, mode: 0o444 }", "option \"mode\" is given twice");
    refused("/// X.\n x: Counter { aggregate: total }", "expected none, one of sum, min,");
    refused("/// X.\n x: Counter { aggregate: 5 }", "expected none, one of sum, min,");
    refused("/// X.\n x: Counter { aggregate: [sum, none] }", "expected none, one of sum,");
    refused("/// X.\n x: Counter { aggregate: [sum, sum] }", "aggregate \"sum\" is named twice");
    refused("/// X.\n x: Counter { aggregate: [] }", "an empty set of aggregates is written");
    refused("/// X.\n x: Histogram { aggregate: [sum, max] }", "a histogram aggregates by sum");
    refused("/// X.\n x: Counter { family: \"X\" }", "family \"X\" does not begin with");
    refused("/// X.\n x: Counter { buckets: 4 }", "only a histogram has buckets");
    refused("/// X.\n x: Counter { states: S }", "only a gauge has states");
    refused("/// X.\n x: Gauge { states: S, aggregate: [zero, sum] }", "states are aggregated by");
    for buckets in ["0", "1", "65", "256", "1_000"] {
        refused(
            &format!("/// X.\n x: Histogram {{ buckets: {buckets} }}"),
            "a histogram has 2 to 64",
        );
    }
}

#[test]
fn labels_of_values() {
    let label = |label: &str| format!("/// X.\n x: Counter {{ family: \"f\", label: {label:?} }}");
    refused(&label("k"), "label \"k\" is not \"key=value\"");
    refused(&label("K=v"), "label key \"K\" does not begin with");
    refused(&label("k="), "label value \"\" is not 1 to 64 bytes");
    refused(&label("k=a\nb"), "label value \"a\\nb\" is not 1 to 64 bytes");
    refused(&label(&format!("k={}", "v".repeat(65))), "label value");
    refused("/// X.\n x: Counter { label: \"k=v\" }", "a label tells values of a family apart");
    refused(
        "/// {}\n x: PerLabel<Counter, L> { label: \"k=v\" }",
        "the label of a PerLabel field comes from its set",
    );
    refused(
        "/// X.\n x: Counter { family: \"f\", label: \"k=v\" },
         /// Y.\n y: Counter { family: \"f\", label: \"k=v\" }",
        "value \"x\" of family \"f\" has this label too",
    );
}

#[test]
fn modes() {
    refused("/// X.\n x: Counter { mode: 644 }", "write the mode in octal");
    refused("/// X.\n x: Counter { mode: 0o755 }", "the mode has bits other than rw-rw-rw-");
    refused("/// X.\n x: Counter { mode: 0o1644 }", "the mode has bits other than rw-rw-rw-");
    refused("/// X.\n x: Counter { mode: 0o777777777 }", "the mode has bits other than");
    for kind in ["Gauge", "Peak", "Flag"] {
        refused(&format!("/// X.\n x: {kind} {{ mode: 0o644 }}"), "only a counter or a histogram");
    }
}

#[test]
fn groups() {
    let group = |text: &str| messages(stats(parse(text)));
    assert_eq!(group("/// B.\nstruct S: \"b\" { }"), ["a group has at least one value"]);
    assert_eq!(
        group("/// B.\nconsistent struct S: \"b\" { /** X. */ x: Histogram }"),
        ["a consistent group has a counter: the other kinds are not latched; drop `consistent`"]
    );
    assert_eq!(
        group("/// B.\nfast struct S: \"b\" { /** X. */ x: Counter }"),
        ["expected `struct` or `consistent struct`"]
    );
    assert_eq!(
        group("/// B.\nstruct S { /** X. */ x: Counter }"),
        ["the group's name is missing: write `struct S: \"group\" { … }`"]
    );
    assert_eq!(
        group("/// B.\nstruct S<T>: \"b\" { /** X. */ x: Counter }"),
        ["a group has no generic parameters: it has one description"]
    );
    assert_eq!(
        group("/// B.\nstruct S: \"b\", prefex \"x\" { /** X. */ x: Counter }"),
        ["expected `prefix \"…\"`"]
    );
    assert_eq!(
        group("/// B.\n#[repr(packed)] struct S: \"b\" { /** X. */ x: Counter }"),
        ["the layout of a group is always repr(C)"]
    );
    assert!(group("")[0].contains("nothing is declared"));
    refused("/// X.\n#[cfg(unix)] x: Counter", "a value is not conditional");
    let many: String = (0..1025).map(|i| format!("/// X.\n x{i}: Counter,")).collect();
    refused(&many, "1025 values; at most 1024 fit in a group");
}

#[test]
fn all_faults_are_reported_at_once() {
    let all = fields("x: Counter { mode: 7 }, /// Y.\n Y: Flag, /// Z.\n z: Gauge { mode: 0o666 }");
    assert_eq!(all.len(), 4, "{all:#?}");
}

#[test]
fn label_sets() {
    let set = |text: &str| messages(label_set(parse(text)));
    const WITHOUT_FIELDS: &str = "a set of labels is an enum without fields";
    assert_eq!(set("#[labels(key = \"k\")] struct S;"), [WITHOUT_FIELDS]);
    assert_eq!(set("#[labels(key = \"k\")] enum S { /** A. */ A(u8) }"), [WITHOUT_FIELDS]);
    assert_eq!(
        set("enum S { /** A. */ A }"),
        ["the label's key is missing: add #[labels(key = \"…\")]"]
    );
    assert_eq!(set("#[labels(kee = \"k\")] enum S { /** A. */ A }"), ["expected `key = \"…\"`"]);
    assert_eq!(
        set("#[labels(key = \"k\", key = \"l\")] enum S { /** A. */ A }"),
        ["the key is given twice"]
    );
    assert_eq!(
        set("#[labels(key = \"K\")] enum S { /** A. */ A }"),
        ["label key \"K\" does not begin with a lower-case letter"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { }"),
        ["a set of labels has 1 to 1024 variants"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S<T> { /** A. */ A }"),
        ["a set of labels has no generic parameters"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { A }"),
        ["a doc comment is missing: it is the label's help"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { /** A. */ A = 1 }"),
        ["a label has no number of its own: its place in the enum is its index"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { /** A. */ IoIn, /** B. */ #[label(\"io_in\")] B }"),
        ["label \"io_in\" is in the set twice"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { /** A. */ #[label(\"io-in\")] A }"),
        ["label \"io-in\" is not [a-z0-9_]+"]
    );
    assert_eq!(
        set("#[labels(key = \"k\")] enum S { /** A. */ #[label(\"a\")] #[label(\"b\")] A }"),
        ["the label's value is given twice"]
    );
}
