//! HTML of what is not trusted.

use std::fmt::Write;

/// Text as it is in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Directions of text could be changed by these, and what is shown is not what is there.
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) => {
                escaped.push('\u{fffd}')
            }
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
    html: String,
    is_open: bool,
}

impl Table {
    /// With these headings, and what they mean. Those of numbers are marked by `#`.
    pub fn new(id: &str, caption: &str, headings: &[(&str, &str)]) -> Self {
        let mut html =
            format!("<table id=\"{id}\"><caption>{}</caption><thead><tr>", escape(caption));
        for (name, help) in headings {
            let (name, class) = match name.strip_prefix('#') {
                Some(name) => (name, " class=\"n\""),
                None => (*name, ""),
            };
            let (name, help) = (escape(name), escape(help));
            let _ = write!(html, "<th scope=\"col\"{class} title=\"{help}\">{name}</th>");
        }
        html += "</tr></thead><tbody>";
        Self { html, is_open: false }
    }

    /// Begins a row, of this part.
    pub fn row(&mut self, part: usize) -> &mut Self {
        self.close();
        self.is_open = true;
        let _ = write!(self.html, "\n<tr data-part=\"{part}\">");
        self
    }

    /// Begins the row at the foot.
    pub fn foot(&mut self) -> &mut Self {
        self.close();
        self.is_open = true;
        self.html += "</tbody><tfoot><tr>";
        self
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.html += "</tr>";
        }
    }

    /// A cell of text.
    pub fn text(&mut self, text: &str, help: &str) -> &mut Self {
        let help =
            if help.is_empty() { String::new() } else { format!(" title=\"{}\"", escape(help)) };
        let _ = write!(self.html, "<td{help}>{}</td>", escape(text));
        self
    }

    /// A cell of a number.
    pub fn number(&mut self, key: Key, text: &str) -> &mut Self {
        let key = match key {
            Key::Number(number) if number.is_finite() => format!(" data-v=\"{number}\""),
            Key::Count(count) => format!(" data-v=\"{count}\""),
            _ => String::new(),
        };
        let _ = write!(self.html, "<td class=\"n\"{key}>{}</td>", escape(text));
        self
    }

    /// The whole of it.
    pub fn finish(mut self) -> String {
        self.close();
        self.html +=
            if self.html.contains("<tfoot>") { "</tfoot></table>" } else { "</tbody></table>" };
        self.html
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_where_it_is() {
        let evil = "</script><img src=x onerror='a(\"&\")'>\u{202e}\u{7}";
        let text = escape(evil);
        assert!(!text.contains(['<', '>', '"', '\'', '\u{202e}', '\u{7}']), "{text}");
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
    fn templates_are_filled_once() {
        let filled = fill("<p>{{a}}</p>{{b}}", |key| format!("[{key} {{{{a}}}}]"));
        assert_eq!(filled, "<p>[a {{a}}]</p>[b {{a}}]");
    }
}
