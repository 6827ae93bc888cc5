//! Points of the [`catalogue`](crate::catalogue) as Prometheus' text format.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::catalogue::{Kind, Metric};

/// `Content-Type` of [`text`]: Prometheus 3 refuses a blank one.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One value of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// What is measured.
    pub metric: &'static Metric,
    /// A value for each label of the metric, in order.
    pub labels: Vec<String>,
    /// In the metric's base unit.
    pub value: f64,
}

impl Point {
    /// A point of `metric`.
    ///
    /// # Panics
    /// When the number of label values is not the metric's: a mistake in the program.
    pub fn new(metric: &'static Metric, labels: &[&str], value: f64) -> Self {
        assert_eq!(labels.len(), metric.labels.len(), "labels of {}", metric.name);
        Self { metric, labels: labels.iter().map(|&l| l.to_owned()).collect(), value }
    }
}

/// Points in the text format, families by name, series by labels.
pub fn text(points: &[Point]) -> String {
    let layout = Layout::of(points.iter().map(|point| (point.metric, &point.labels[..])));
    layout.page(&points.iter().map(|point| point.value).collect::<Vec<_>>())
}

/// A page without its values: families by name, each with its help and type, series by labels.
///
/// A page is most of what an exporter does, and its lines are the same each time but for their values.
#[derive(Debug, Default)]
pub struct Layout {
    text: String,
    /// Of each value in the order of the page: where in `text` it stands, and which series' it is.
    values: Vec<(usize, usize)>,
}

impl Layout {
    /// The page of such series: metric, and a value for each of its labels in order.
    pub fn of<'a, L: AsRef<str> + 'a>(series: impl Iterator<Item = (&'static Metric, &'a [L])>) -> Self {
        let mut names = String::new();
        let mut lines = Vec::new();
        for (index, (metric, labels)) in series.enumerate() {
            let start = names.len();
            push_series(&mut names, metric, labels);
            lines.push((metric, start..names.len(), index));
        }
        lines.sort_by(|(a, a_name, _), (b, b_name, _)| {
            a.name.cmp(b.name).then_with(|| names[a_name.clone()].cmp(&names[b_name.clone()]))
        });
        let mut layout = Self::default();
        let mut family = "";
        for (metric, name, index) in lines {
            if metric.name != family {
                family = metric.name;
                push_header(&mut layout.text, metric);
            }
            layout.text.push_str(&names[name]);
            layout.values.push((layout.text.len(), index));
            layout.text.push('\n');
        }
        layout
    }

    /// The page of these values, in the order in which the series were told; one that lacks is `NaN`.
    pub fn page(&self, values: &[f64]) -> String {
        // A number takes up to 24 bytes, most take half of that.
        let mut page = String::with_capacity(self.text.len() + self.values.len() * 16);
        let mut written = 0;
        for (at, index) in &self.values {
            page.push_str(&self.text[written..*at]);
            push_number(&mut page, values.get(*index).copied().unwrap_or(f64::NAN));
            written = *at;
        }
        page.push_str(&self.text[written..]);
        page
    }
}

/// Name and labels of a series, up to its value.
fn push_series(line: &mut String, metric: &Metric, labels: &[impl AsRef<str>]) {
    debug_assert_eq!(labels.len(), metric.labels.len(), "labels of {}", metric.name);
    line.push_str(metric.name);
    for (i, (name, label)) in metric.labels.iter().zip(labels).enumerate() {
        line.push(if i == 0 { '{' } else { ',' });
        line.push_str(name);
        line.push_str("=\"");
        push_escaped(line, label.as_ref());
        line.push('"');
    }
    line.push_str(if metric.labels.is_empty() { " " } else { "} " });
}

/// Whether an `Accept-Encoding` takes gzip.
pub fn accepts_gzip(accept_encoding: &str) -> bool {
    let refused = |parameters: &str| {
        let quality = parameters.split(';').find_map(|p| p.trim().strip_prefix("q="));
        quality.and_then(|q| q.trim().parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
    };
    accept_encoding.split(',').any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        matches!(name.trim(), "gzip" | "x-gzip" | "*") && !refused(parameters)
    })
}

/// A page, compressed fast: its lines are alike, and the best would save a tenth more in three times the time.
///
/// # Errors
/// When there is no memory for it.
pub fn gzip(page: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(page.len() / 8), Compression::fast());
    encoder.write_all(page.as_bytes())?;
    encoder.finish()
}

fn push_header(page: &mut String, metric: &Metric) {
    for part in ["# HELP ", metric.name, " "] {
        page.push_str(part);
    }
    for c in metric.help.chars() {
        match c {
            '\\' => page.push_str("\\\\"),
            '\n' => page.push_str("\\n"),
            c => page.push(c),
        }
    }
    let kind = match metric.kind {
        Kind::Counter => " counter\n",
        Kind::Gauge => " gauge\n",
    };
    for part in ["\n# TYPE ", metric.name, kind] {
        page.push_str(part);
    }
}

/// A label's value as it stands between quotes.
fn push_escaped(line: &mut String, value: &str) {
    for part in value.split_inclusive(['\\', '"', '\n']) {
        let (plain, escaped) = match part.as_bytes().last() {
            Some(b'\\') => (&part[..part.len() - 1], "\\\\"),
            Some(b'"') => (&part[..part.len() - 1], "\\\""),
            Some(b'\n') => (&part[..part.len() - 1], "\\n"),
            _ => (part, ""),
        };
        line.push_str(plain);
        line.push_str(escaped);
    }
}

/// The shortest decimal that reads back as the same number.
fn push_number(line: &mut String, value: f64) {
    let written = if value.is_nan() {
        line.write_str("NaN")
    } else if value.is_infinite() {
        line.write_str(if value > 0.0 { "+Inf" } else { "-Inf" })
    } else {
        write!(line, "{value}")
    };
    // A string takes everything.
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn a_family_has_one_header_and_numbers_are_those_of_prometheus() {
        let gauge = |uuid, value| Point::new(&catalogue::GPU_TEMPERATURE, &[uuid], value);
        let points =
            [gauge("d", 0.1), gauge("c", f64::NEG_INFINITY), gauge("b", f64::INFINITY), gauge("a", f64::NAN)];
        let text = text(&points);
        let mut lines = text.lines();
        let header =
            format!("# HELP {} {}", catalogue::GPU_TEMPERATURE.name, catalogue::GPU_TEMPERATURE.help);
        assert_eq!(lines.next(), Some(header.as_str()));
        assert_eq!(lines.next(), Some("# TYPE wattmill_gpu_temperature_celsius gauge"));
        let values: Vec<&str> = lines.filter_map(|line| line.rsplit_once(' ')).map(|(_, v)| v).collect();
        assert_eq!(values, ["NaN", "+Inf", "-Inf", "0.1"]);
        assert!(
            super::text(&[Point::new(&catalogue::HOST_MEMORY_USED, &[], 1e15)])
                .ends_with("\nwattmill_host_memory_used_bytes 1000000000000000\n")
        );
    }

    #[test]
    fn gzip_is_what_was_written_and_is_sent_to_who_takes_it() {
        let page = "wattmill_gpu_up{uuid=\"a\"} 1\n".repeat(100);
        let packed = gzip(&page).unwrap();
        assert!(packed.len() < page.len() / 10, "{}", packed.len());
        let unpacked = io::read_to_string(flate2::read::GzDecoder::new(&packed[..])).unwrap();
        assert_eq!(unpacked, page);
        for (header, takes) in [
            ("gzip", true),
            ("gzip, deflate, br", true),
            ("identity, gzip;q=0.5", true),
            ("*", true),
            ("", false),
            ("identity", false),
            ("br;q=1, gzip; q=0", false),
            ("gzip;q=0.000", false),
            ("xgzip", false),
        ] {
            assert_eq!(accepts_gzip(header), takes, "{header}");
        }
    }

    #[test]
    fn text_is_sorted_and_escaped() {
        let points = [
            Point::new(&catalogue::GPU_UP, &["b\"\\\n"], 0.0),
            Point::new(&catalogue::GPU_UP, &["a"], 1.0),
            Point::new(&catalogue::GPU_ENERGY_JOULES, &["a", "counter"], 1234567.890123),
        ];
        let text = text(&points);
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "wattmill_gpu_energy_joules_total{uuid=\"a\",source=\"counter\"} 1234567.890123",
                "wattmill_gpu_up{uuid=\"a\"} 1",
                "wattmill_gpu_up{uuid=\"b\\\"\\\\\\n\"} 0",
            ]
        );
    }
}
