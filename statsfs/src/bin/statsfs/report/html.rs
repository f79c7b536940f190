//! HTML of what is not trusted.

use std::fmt::Write;

use statsfs::tools::plain;

/// Text as it is in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    // Directions of text could be changed, and what is shown is not what is there.
    for c in plain(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// JSON as it is in a script element, which nothing in it can end.
pub fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// A template with what stands between `{{` and `}}` replaced. What is put in is not looked at again.
pub fn fill<'a>(template: &'a str, mut with: impl FnMut(&'a str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (key, rest) = part.split_once("}}").unwrap_or((part, ""));
        filled += &with(key);
        filled += rest;
    }
    filled
}

/// What a cell is sorted by.
#[derive(Clone, Copy, Debug)]
pub enum Key {
    Number(f64),
    Count(u64),
    Nothing,
}

/// A table whose columns can be sorted by.
pub struct Table {
    begin: String,
    headings: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    /// What it is of; none at the foot.
    part: Option<usize>,
    /// Each, and whether there is nothing in it.
    cells: Vec<(String, bool)>,
}

impl Table {
    /// With these headings, and what they mean. Those of numbers are marked by `#`.
    pub fn new(id: &str, caption: &str, headings: &[(&str, &str)]) -> Self {
        let begin = format!("<table id=\"{id}\"><caption>{}</caption>", escape(caption));
        let heading = |(name, help): &(&str, &str)| {
            let (name, class) = match name.strip_prefix('#') {
                Some(name) => (name, " class=\"n\""),
                None => (*name, ""),
            };
            format!("<th scope=\"col\"{class}{}>{}</th>", title(help), escape(name))
        };
        Self { begin, headings: headings.iter().map(heading).collect(), rows: Vec::new() }
    }

    /// Begins a row, of this part.
    pub fn row(&mut self, part: usize) -> &mut Self {
        self.rows.push(Row { part: Some(part), cells: Vec::new() });
        self
    }

    /// Begins the row at the foot, which is the last.
    pub fn foot(&mut self) -> &mut Self {
        self.rows.push(Row { part: None, cells: Vec::new() });
        self
    }

    fn cell(&mut self, attributes: &str, text: &str) -> &mut Self {
        let cell = format!("<td{attributes}>{}</td>", escape(text));
        if let Some(row) = self.rows.last_mut() {
            row.cells.push((cell, text.is_empty()));
        }
        self
    }

    /// A cell of text.
    pub fn text(&mut self, text: &str, help: &str) -> &mut Self {
        self.cell(&title(help), text)
    }

    /// A cell of a number.
    pub fn number(&mut self, key: Key, text: &str) -> &mut Self {
        let key = match key {
            Key::Number(number) if number.is_finite() => format!(" data-v=\"{number}\""),
            Key::Count(count) => format!(" data-v=\"{count}\""),
            _ => String::new(),
        };
        self.cell(&format!(" class=\"n\"{key}"), text)
    }

    /// The whole of it, without columns that have nothing. Nothing if it has no rows.
    pub fn finish(self) -> String {
        let Self { mut begin, headings, rows } = self;
        if rows.is_empty() {
            return String::new();
        }
        let is_used =
            |n: usize| rows.iter().any(|row| row.cells.get(n).is_some_and(|cell| !cell.1));
        let used: Vec<_> = (0..headings.len()).filter(|n| is_used(*n)).collect();
        let heads: String = used.iter().map(|n| &*headings[*n]).collect();
        let _ = write!(begin, "<thead><tr>{heads}</tr></thead><tbody>");
        for row in &rows {
            let _ = match row.part {
                Some(part) => write!(begin, "\n<tr data-part=\"{part}\">"),
                None => write!(begin, "</tbody><tfoot><tr>"),
            };
            used.iter().filter_map(|n| row.cells.get(*n)).for_each(|(cell, _)| begin += cell);
            begin += "</tr>";
        }
        begin += if rows.iter().any(|row| row.part.is_none()) { "</tfoot>" } else { "</tbody>" };
        begin + "</table>"
    }
}

/// An attribute that is shown where the pointer is.
fn title(help: &str) -> String {
    if help.is_empty() { String::new() } else { format!(" title=\"{}\"", escape(help)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_where_it_is() {
        let evil = "</script><img src=x onerror='a(\"&\")'>\u{202e}\u{2066}\u{7}";
        let text = escape(evil);
        let out = ['<', '>', '"', '\'', '\u{202e}', '\u{2066}', '\u{7}'];
        assert!(!text.contains(out), "{text}");
        let json = serde_json::to_string(evil).unwrap();
        let script = in_script(&json);
        assert!(!script.contains('<'), "{script}");
        assert_eq!(serde_json::from_str::<String>(&script).unwrap(), evil);
        let mut table = Table::new("t", evil, &[(evil, evil)]);
        table.row(1).text(evil, evil).number(Key::Number(f64::NAN), evil);
        let html = table.finish();
        assert!(!html.contains("<img") && !html.contains("onerror='"), "{html}");
    }

    #[test]
    fn tables_have_the_columns_that_have_something() {
        let mut table = Table::new("t", "T", &[("a", ""), ("#b", ""), ("#c", "")]);
        table.row(2).text("x", "").number(Key::Nothing, "").number(Key::Count(7), "7");
        table.foot().text("", "").number(Key::Nothing, "").number(Key::Count(7), "7");
        let expected = "<table id=\"t\"><caption>T</caption><thead><tr><th scope=\"col\">a</th>\
            <th scope=\"col\" class=\"n\">c</th></tr></thead><tbody>\n<tr data-part=\"2\"><td>x</td>\
            <td class=\"n\" data-v=\"7\">7</td></tr></tbody><tfoot><tr><td></td>\
            <td class=\"n\" data-v=\"7\">7</td></tr></tfoot></table>";
        assert_eq!(table.finish(), expected);
        assert_eq!(Table::new("t", "T", &[("a", "")]).finish(), "");
    }

    #[test]
    fn templates_are_filled_once() {
        let filled = fill("<p>{{a}}</p>{{b}}", |key| format!("[{key} {{{{a}}}}]"));
        assert_eq!(filled, "<p>[a {{a}}]</p>[b {{a}}]");
    }
}
