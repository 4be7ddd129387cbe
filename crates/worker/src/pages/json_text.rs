//! JSON with line breaks, otherwise as it was stored: also keys that occur twice, and numbers as they were written.

/// The largest indentation, in levels.
const MAX_INDENT: usize = 16;
/// No line break is added once the text has this many bytes.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Adds line breaks and indentation to JSON, outside of its strings. A text that is no JSON is not changed.
pub(super) fn with_line_breaks(text: &str) -> String {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return text.to_owned();
    }
    let mut indented = String::with_capacity(text.len());
    let (mut level, mut is_string, mut is_escaped) = (0_usize, false, false);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if is_string {
            indented.push(c);
            (is_string, is_escaped) = (is_escaped || c != '"', c == '\\' && !is_escaped);
            continue;
        }
        let break_line = |indented: &mut String, level: usize| {
            if indented.len() < MAX_BYTES {
                indented.push('\n');
                indented.push_str(&"  ".repeat(level.min(MAX_INDENT)));
            }
        };
        match c {
            ' ' | '\n' | '\r' | '\t' => {}
            '{' | '[' => {
                indented.push(c);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                if rest.peek().is_some_and(|next| matches!(next, '}' | ']')) {
                    indented.extend(rest.next());
                } else {
                    level += 1;
                    break_line(&mut indented, level);
                }
            }
            '}' | ']' => {
                level = level.saturating_sub(1);
                break_line(&mut indented, level);
                indented.push(c);
            }
            ',' => {
                indented.push(c);
                break_line(&mut indented, level);
            }
            ':' => indented.push_str(": "),
            _ => {
                is_string = c == '"';
                indented.push(c);
            }
        }
    }
    indented
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_line_breaks_are_added() {
        let text = r#"{"a":1,"a":[12345678901234567890123,{}, [ ]],"b":"x:{,}\"\\"}"#;
        let expected = "{\n  \"a\": 1,\n  \"a\": [\n    12345678901234567890123,\n    {},\n    []\n  ],\n  \"b\": \"x:{,}\\\"\\\\\"\n}";
        assert_eq!(with_line_breaks(text), expected);
        assert_eq!(with_line_breaks("not {JSON}"), "not {JSON}");
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(with_line_breaks(&nested).len() < 10_000);
        let wide = format!("[{}1]", "1,".repeat(2_000_000));
        assert!(with_line_breaks(&wide).len() < wide.len() + MAX_BYTES);
    }
}
