//! Aligned tables for the terminal.
//!
//! Cells are cut to a width that keeps a row on a line. What a value may contain is not trusted: characters that a
//! terminal would act on are shown escaped.

/// Longer cells are cut: a screen has room for some columns of this width.
const CELL_CHARACTERS_MAX: usize = 36;

/// A heading and how its column is aligned.
#[derive(Clone, Debug)]
pub(super) struct Heading {
    pub(super) name: String,
    /// Numbers stand on the right.
    pub(super) right: bool,
}

/// Column widths, taken from headings and the first rows, used for the rows that come later too.
#[derive(Clone, Debug)]
pub(super) struct Table {
    headings: Vec<Heading>,
    widths: Vec<usize>,
}

impl Table {
    /// A table wide enough for its headings and `rows`, whose cells have been through [`cell`].
    pub(super) fn new(headings: Vec<Heading>, rows: &[Vec<String>]) -> Self {
        let width = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = headings.iter().map(|heading| width(&heading.name)).collect();
        for row in rows {
            for (known, text) in widths.iter_mut().zip(row) {
                *known = width(text).max(*known);
            }
        }
        Self { headings, widths }
    }

    /// The line of headings.
    pub(super) fn head(&self) -> String {
        let names: Vec<String> = self.headings.iter().map(|heading| heading.name.clone()).collect();
        self.line(&names)
    }

    /// A line of cells, without trailing spaces.
    pub(super) fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (index, ((text, width), heading)) in cells.iter().zip(&self.widths).zip(&self.headings).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            let padding = " ".repeat(width.saturating_sub(text.chars().count()));
            if heading.right {
                line.push_str(&padding);
                line.push_str(text);
            } else {
                line.push_str(text);
                line.push_str(&padding);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A text as a cell shows it.
pub(super) fn cell(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count >= CELL_CHARACTERS_MAX {
            shown.push('…');
            break;
        }
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            // Beside control characters those that turn the direction of writing.
            unsafe_one
                if unsafe_one.is_control()
                    || matches!(unsafe_one, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(unsafe_one.escape_unicode());
            }
            other => shown.push(other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let headings = vec![
            Heading { name: "id".into(), right: true },
            Heading { name: "city".into(), right: false },
            Heading { name: "note".into(), right: false },
        ];
        let rows = [["7", "Zürich", "a"], ["1042", "Oslo", ""]].map(|row| row.map(String::from).to_vec());
        let table = Table::new(headings, &rows);
        assert_eq!(table.head(), "  id  city    note");
        assert_eq!(table.line(&rows[0]), "   7  Zürich  a");
        assert_eq!(table.line(&rows[1]), "1042  Oslo");
    }

    #[test]
    fn a_cell_is_short_and_does_not_steer_the_terminal() {
        assert_eq!(cell("a\nb\u{1b}[31m\u{9b}1m"), "a\\nb\\u{1b}[31m\\u{9b}1m");
        assert_eq!(cell(&"x".repeat(50)), format!("{}…", "x".repeat(36)));
    }
}
