//! The Prometheus text format, as a scraper reads it.

use std::collections::BTreeMap;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Series {
    /// A label's value, or nothing.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A value in joules as whole microjoules: the agent counts those, and shows them exactly.
    pub fn microjoules(&self) -> u64 {
        let exact = self.value * 1e6;
        assert!((0.0..9e15).contains(&exact), "{self:?} is not exact as a double");
        exact.round() as u64
    }
}

/// One scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The text.
    pub text: String,
    /// Its values.
    pub series: Vec<Series>,
}

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Panics
    /// A line that is none.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines.map(|line| series(line).unwrap_or_else(|| panic!("not a value: {line:?}")));
        Self { series: series.collect(), text: text.to_owned() }
    }

    /// Series of a metric, in order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Series> + use<'a> {
        let name = name.to_owned();
        self.series.iter().filter(move |series| series.name == name)
    }

    /// The only series of a metric with these labels among its own.
    ///
    /// # Panics
    /// There are several.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Series> {
        let mut found = self.all(name).filter(|series| labels.iter().all(|(l, v)| series.label(l) == *v));
        let first = found.next();
        assert!(found.next().is_none(), "several {name}{labels:?}");
        first
    }

    /// The value of [`Metrics::find`].
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.find(name, labels).map(|series| series.value)
    }

    /// The value of [`Metrics::find`] in microjoules.
    pub fn microjoules(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        self.find(name, labels).map(Series::microjoules)
    }

    /// Microjoules of a metric summed by one label.
    pub fn microjoules_by(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for series in self.all(name) {
            *sums.entry(series.label(label).to_owned()).or_default() += series.microjoules();
        }
        sums
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some(Series { name: name.to_owned(), labels, value: rest.trim().parse().ok()? })
}

/// A value up to its closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read() {
        let metrics = Metrics::parse(
            "# HELP a b\na 1\nb{x=\"1\",y=\"q\\\"}, \\\\\"} 1.5e3\nb{x=\"2\",y=\"\"} 0.000001\n",
        );
        assert_eq!(metrics.value("a", &[]), Some(1.0));
        assert_eq!(metrics.find("b", &[("x", "1")]).unwrap().label("y"), "q\"}, \\");
        assert_eq!(metrics.microjoules("b", &[("x", "2")]), Some(1));
        assert_eq!(metrics.microjoules_by("b", "x")["1"], 1_500_000_000);
        assert_eq!(metrics.value("c", &[]), None);
    }
}
