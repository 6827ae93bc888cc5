//! How figures look: the same words and units everywhere.

use std::fmt;
use std::io::{self, Write as _};

use wattmill_protocol::{Energy, v1};

use crate::client::Error;

/// Says a line on standard output. `println!` would panic where the reader has left, as `head` does: it is denied in
/// this program, and this is the one way out.
macro_rules! say {
    ($($words:tt)*) => { $crate::show::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// What [`say`] does.
pub(crate) fn line(words: fmt::Arguments<'_>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{words}").and_then(|()| out.flush()).map_err(Error::Output)
}

/// What stands for a figure that nobody knows.
pub(crate) const ABSENT: &str = "–";

/// Joules with their unit, and whether they are an estimate.
pub(crate) fn joules(energy: Option<v1::Energy>) -> String {
    let energy = Energy::from(energy.unwrap_or_default());
    let amount = scaled(energy.total_joules(), "J");
    let estimate = energy.get(wattmill_protocol::Source::Estimate);
    match (estimate, energy.total()) {
        (0, _) => amount,
        (all, total) if all == total => format!("{amount} est."),
        (part, total) => format!("{amount} ({:.0} % est.)", part as f64 / total as f64 * 100.0),
    }
}

/// A figure with three significant digits and an SI prefix.
pub(crate) fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 6] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m")];
    let (factor, prefix) =
        PREFIXES.into_iter().find(|(factor, _)| value.abs() >= *factor).unwrap_or((1.0, ""));
    let scaled = value / factor;
    let decimals = if scaled.abs() >= 100.0 {
        0
    } else if scaled.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.decimals$} {prefix}{unit}")
}

/// A figure that may be absent.
pub(crate) fn maybe(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), show)
}

/// A ratio as a percentage.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.2} %", ratio * 100.0)
}

/// A job's state in a word.
pub(crate) fn state(job: &v1::JobView) -> &'static str {
    match job.state() {
        v1::JobState::Unspecified => "unknown",
        v1::JobState::Preparing => "preparing",
        v1::JobState::Training => "training",
        v1::JobState::Settling => "settling",
        v1::JobState::Finished => "finished",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
    }
}

/// Text from elsewhere, safe for a terminal: control characters and direction marks are shown, not obeyed.
pub(crate) fn text(text: &str) -> String {
    let unsafe_mark = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let show = |c: char| if unsafe_mark(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

/// A plain table: columns as wide as their widest cell, numbers to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let numeric = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) || cell == ABSENT;
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| {
            let padding = " ".repeat(width - cell.chars().count());
            if numeric(cell) { format!("{padding}{cell}") } else { format!("{cell}{padding}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use wattmill_protocol::Source;

    use super::*;

    #[test]
    fn figures_carry_units_and_estimates_say_so() {
        assert_eq!(scaled(1234.5, "J"), "1.23 kJ");
        assert_eq!(scaled(0.0, "W"), "0.00 W");
        assert_eq!(scaled(0.0123, "J"), "12.3 mJ");
        let energy = Energy::of(Source::Estimate, 2_500_000);
        assert_eq!(joules(Some(energy.into())), "2.50 J est.");
        let mixed = energy + Energy::of(Source::Counter, 7_500_000);
        assert_eq!(joules(Some(mixed.into())), "10.0 J (25 % est.)");
        assert_eq!(joules(None), "0.00 J");
    }

    #[test]
    fn hostile_text_is_shown() {
        assert_eq!(text("a\u{1b}[31m\u{202e}b"), "a\\u{1b}[31m\\u{202e}b");
    }

    #[test]
    fn tables_line_up() {
        let rows =
            vec![vec!["a".to_owned(), "1.0 W".to_owned()], vec!["bcd".to_owned(), "10.0 W".to_owned()]];
        assert_eq!(table(&["NAME", "POWER"], &rows), "NAME  POWER\na      1.0 W\nbcd   10.0 W");
    }
}
