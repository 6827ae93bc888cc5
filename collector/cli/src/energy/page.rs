//! A page in Prometheus' text format, as the node's agent serves it.
//!
//! Invariant: any text is a page or a [`PageError`]; what is kept is bounded by [`MAX_SERIES`] and [`MAX_LABELS`].

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Most series of a page: an agent with 200 units on a host of 16 GPUs and 64 disks has some 3,000.
const MAX_SERIES: usize = 20_000;
/// Most labels of a series; those of the catalogue have six at most.
const MAX_LABELS: usize = 32;
/// What is shown of a line that cannot be read, in characters.
const SHOWN_CHARS: usize = 60;

/// A text that is no page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PageError {
    /// A line is no series.
    #[error("line {number} is not in Prometheus' text format: {line:?}")]
    Line {
        /// Which, from one.
        number: usize,
        /// How it begins.
        line: String,
    },
    /// There are more series than any agent has.
    #[error("it has over {MAX_SERIES} series")]
    TooMany,
}

/// One value.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Series {
    /// Labels in the order of the page.
    labels: Vec<(String, String)>,
    /// In the metric's base unit.
    pub(crate) value: f64,
}

impl Series {
    /// A label's value, empty where there is none.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }
}

/// The values of one scrape, by metric.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Page(BTreeMap<String, Vec<Series>>);

impl Page {
    /// Reads a page. Timestamps are passed over, and so are comments.
    pub(crate) fn parse(text: &str) -> Result<Self, PageError> {
        let (mut metrics, mut count) = (BTreeMap::<String, Vec<Series>>::new(), 0);
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if count == MAX_SERIES {
                return Err(PageError::TooMany);
            }
            count += 1;
            let unreadable =
                || PageError::Line { number: index + 1, line: line.chars().take(SHOWN_CHARS).collect() };
            let (name, series) = parse_line(line).ok_or_else(unreadable)?;
            metrics.entry(name).or_default().push(series);
        }
        Ok(Self(metrics))
    }

    /// All series of a metric, in order.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Series> + use<'a> {
        self.0.get(name).into_iter().flatten()
    }

    /// The first series of a metric with this value of a label.
    pub(crate) fn with(&self, name: &str, label: &str, value: &str) -> Option<&Series> {
        self.all(name).find(|series| series.label(label) == value)
    }

    /// The value of [`Self::with`], where it is a number.
    pub(crate) fn value(&self, name: &str, label: &str, value: &str) -> Option<f64> {
        self.with(name, label, value).map(|series| series.value).filter(|value| value.is_finite())
    }
}

fn parse_line(line: &str) -> Option<(String, Series)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = line.find(|c| !is_name(c))?;
    let (name, rest) = line.split_at(end);
    if name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => {
            let mut chars = rest.chars().peekable();
            (parse_labels(&mut chars)?, chars.collect::<String>())
        }
        None => (Vec::new(), rest.to_owned()),
    };
    let mut words = rest.split_whitespace();
    let value = words.next()?.parse().ok()?;
    // A timestamp may follow, and nothing else.
    if words.next().is_some_and(|time| time.parse::<i64>().is_err()) || words.next().is_some() {
        return None;
    }
    Some((name.to_owned(), Series { labels, value }))
}

/// Labels up to and with the closing brace.
fn parse_labels(chars: &mut Peekable<Chars<'_>>) -> Option<Vec<(String, String)>> {
    let mut labels = Vec::new();
    loop {
        while chars.next_if(|c| *c == ' ' || *c == ',').is_some() {}
        if chars.next_if_eq(&'}').is_some() {
            return Some(labels);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        if name.is_empty() || labels.len() == MAX_LABELS || chars.next()? != '=' || chars.next()? != '"' {
            return None;
        }
        labels.push((name, parse_value(chars)?));
    }
}

/// A label's value up to and with the closing quotation mark.
fn parse_value(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut value = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                _ => return None,
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_an_agent_writes_is_read() {
        let page = "# HELP a_watts Watts.\n# TYPE a_watts gauge\na_watts 1.5\n\
                    b_joules_total{kind=\"pod\",name=\"a\\\"b\\\\c\\nd}, \"} 2e3 1700000000000\r\nc{} NaN\nd +Inf\n";
        let page = Page::parse(page).unwrap();
        assert_eq!(page.all("a_watts").map(|s| s.value).collect::<Vec<_>>(), [1.5]);
        let unit = page.with("b_joules_total", "kind", "pod").unwrap();
        assert_eq!((unit.label("name"), unit.value, unit.label("none")), ("a\"b\\c\nd}, ", 2000.0, ""));
        assert!(page.all("c").next().unwrap().value.is_nan());
        assert_eq!(page.value("d", "", ""), None, "only numbers are values");
    }

    #[test]
    fn what_is_none_is_refused_by_its_line() {
        for line in [
            "<html>",
            "a",
            "a x",
            "a 1 2 3",
            "a 1 x",
            "1a 1",
            "a{b} 1",
            "a{b=c} 1",
            "a{b=\"c} 1",
            "a{b=\"\\q\"} 1",
            "{b=\"c\"} 1",
            "a{",
            "a{b=\"c\"",
            "é 1",
        ] {
            let error = Page::parse(&format!("ok 1\n{line}\n")).unwrap_err();
            assert!(matches!(&error, PageError::Line { number: 2, .. }), "{line}: {error}");
        }
        let long = Page::parse(&"x".repeat(10_000)).unwrap_err();
        assert!(long.to_string().len() < 200, "{long}");
    }

    #[test]
    fn a_page_and_its_labels_are_bounded() {
        let page = |count| Page::parse(&"a 1\n".repeat(count));
        assert_eq!(page(MAX_SERIES).map(|page| page.all("a").count()), Ok(MAX_SERIES));
        assert_eq!(page(MAX_SERIES + 1), Err(PageError::TooMany));
        let labels = |count| Page::parse(&format!("a{{{}}} 1\n", "b=\"c\",".repeat(count)));
        assert!(labels(MAX_LABELS).is_ok() && labels(MAX_LABELS + 1).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = Page::parse(&text);
        }

        #[test]
        fn nothing_like_a_page_panics(text in "[a-z_]{0,3}(\\{([a-z]{0,2}[=\"\\\\,n} é]{0,4}){0,4}\\}?)?[ 0-9.eNaInf+-]{0,8}\n?") {
            let _ = Page::parse(&text.repeat(3));
        }

        #[test]
        fn every_value_comes_back(value in any::<String>().prop_filter("one line", |v| !v.contains(['\r', '\u{b}', '\u{c}', '\u{85}'])), number in any::<f64>()) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let page = Page::parse(&format!("a{{b=\"{escaped}\"}} {number}\n")).unwrap();
            let series = page.all("a").next().unwrap();
            prop_assert_eq!(series.label("b"), value);
            prop_assert!(series.value == number || number.is_nan());
        }
    }
}
