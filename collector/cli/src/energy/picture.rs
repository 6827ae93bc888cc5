//! A sample as lines for people.
//!
//! Invariant: what comes from elsewhere is safe for a terminal, and sums are of what does not overlap and is known in
//! the same way: measured joules apart from estimates.

use super::agent::VERSION;
use super::sample::{Gpu, Row, SUMMED_KINDS, Sample};
use crate::show;

/// Longest name that is shown, in characters; --json has all of it.
const NAME_CHARS: usize = 44;
/// What is shown of a GPU's UUID: enough to tell those of a node apart.
const UUID_CHARS: usize = 12;
/// The columns under the name's.
const HEAD: [&str; 7] = ["WATTS", "LIMIT", "USE", "WATCHED", "LEDGER", "SOURCE", "STATE"];

/// How a line looks where there are colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// As any text.
    Plain,
    /// Begins something.
    Head,
    /// Asks for attention.
    Bad,
    /// Is of less weight: it is counted elsewhere.
    Dim,
}

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// Its text.
    pub(crate) text: String,
    /// How it looks.
    pub(crate) style: Style,
}

impl Line {
    /// A line.
    pub(crate) fn new(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style }
    }
}

/// A row of cells on its way into the table.
type Cells = (Style, Vec<String>);

/// The sample, asked for at `url`, in at most `height` lines.
pub(crate) fn lines(sample: &Sample, url: &str, watched_seconds: f64, height: usize) -> Vec<Line> {
    let mut lines = head(sample, url, watched_seconds);
    let mut rows = Vec::new();
    section(&mut rows, "NODE", &sample.scopes, Style::Plain);
    rows.extend(totals(&sample.scopes).iter().map(|row| (Style::Plain, cells(row))));
    section(&mut rows, "DEVICES", &sample.devices, Style::Plain);
    section(&mut rows, "CONTAINED ABOVE, OR CONTAINING IT", &sample.overlapping, Style::Dim);
    section(&mut rows, "WHOSE IT IS", &sample.consumers, Style::Plain);
    section(&mut rows, "UNITS", &sample.units, Style::Plain);
    let styles: Vec<Style> = rows.iter().map(|(style, _)| *style).collect();
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, cells)| cells).collect();
    let titles: Vec<&str> = std::iter::once("").chain(HEAD).collect();
    let table = show::table(&titles, &rows);
    let styles = std::iter::once(Style::Head).chain(styles);
    lines.extend(styles.zip(table.lines()).map(|(style, text)| Line::new(style, text)));
    if sample.scopes.is_empty() {
        lines.push(Line::new(Style::Plain, "nothing metered yet: the agent's first window has not closed"));
    }
    cut(lines, height)
}

/// As many lines as fit, with the number of those that do not.
fn cut(mut lines: Vec<Line>, height: usize) -> Vec<Line> {
    if lines.len() > height {
        let kept = height.saturating_sub(1);
        let more = format!("… {} more lines", lines.len() - kept);
        lines.truncate(kept);
        lines.push(Line::new(Style::Dim, more));
        lines.truncate(height);
    }
    lines
}

fn head(sample: &Sample, url: &str, watched_seconds: f64) -> Vec<Line> {
    let (node, version) = (show::text(&sample.node), show::text(&sample.agent_version));
    let url = url.trim_end_matches("/metrics");
    let mut text = format!("{node}  agent {version} at {url}");
    if watched_seconds > 0.0 {
        text.push_str(&format!("  watched {}", duration(watched_seconds)));
    }
    let mut lines = vec![Line::new(Style::Head, text)];
    if sample.agent_version != VERSION {
        let text =
            format!("agent {version}, this tool {VERSION}: what one of them does not know is not shown");
        lines.push(Line::new(Style::Bad, text));
    }
    for backend in &sample.backends_down {
        let text =
            format!("{} cannot be read: `wattmill-agent check` says why and what to do", show::text(backend));
        lines.push(Line::new(Style::Bad, text));
    }
    lines.push(Line::new(Style::Plain, ""));
    lines
}

/// A time such as `1:02:03` or `02:03`.
fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes:02}:{seconds:02}")
    }
}

fn section(rows: &mut Vec<Cells>, title: &str, of: &[Row], style: Style) {
    if of.is_empty() {
        return;
    }
    let mut head = vec![String::new(); HEAD.len() + 1];
    title.clone_into(&mut head[0]);
    rows.push((Style::Head, head));
    rows.extend(of.iter().map(|row| {
        let bad = row.gpu.as_ref().is_some_and(|gpu| !gpu.up);
        (if bad { Style::Bad } else { style }, cells(row))
    }));
}

/// The node's sum of what is measured, and of what is estimated, where there is more than one scope to sum.
fn totals(scopes: &[Row]) -> Vec<Row> {
    let (estimated, measured): (Vec<&Row>, Vec<&Row>) =
        scopes.iter().partition(|scope| scope.source == "estimate");
    let mut totals = Vec::new();
    for (name, of) in [("all that is measured", measured), ("all that is estimated", estimated)] {
        if of.len() < 2 {
            continue;
        }
        let mut total = Row::bare("scope", name, of.iter().map(|scope| scope.watts).sum());
        for scope in of {
            total.joules += scope.joules;
            total.watched_joules += scope.watched_joules;
            total.add_source(&scope.source);
        }
        totals.push(total);
    }
    totals
}

fn cells(row: &Row) -> Vec<String> {
    let watts = |watts: Option<f64>| show::maybe(watts, |watts| show::scaled(watts, "W"));
    let joules = |joules: f64| {
        if row.source.is_empty() { show::ABSENT.to_owned() } else { show::scaled(joules, "J") }
    };
    let gpu = row.gpu.as_ref();
    let figure = |show: &dyn Fn(&Gpu) -> String| gpu.map_or_else(String::new, show);
    vec![
        format!("  {}", name(row)),
        watts(row.watts),
        figure(&|gpu| watts(gpu.limit_watts)),
        figure(&|gpu| show::maybe(gpu.utilization_ratio, |ratio| format!("{:.0} %", ratio * 100.0))),
        joules(row.watched_joules),
        joules(row.joules),
        show::text(&row.source),
        figure(&state),
    ]
}

fn name(row: &Row) -> String {
    let id = show::text(&row.id);
    let text = match (&row.gpu, row.kind.as_str()) {
        (Some(gpu), _) => {
            let uuid: String = id.chars().take(UUID_CHARS).collect();
            format!("gpu {} {uuid} {}", show::text(&gpu.index), show::text(&gpu.model))
        }
        (None, "scope" | "consumer" | "zone") => id,
        (None, kind) if SUMMED_KINDS.contains(&kind) => format!("({kind})"),
        (None, kind) => format!("{} {id}", show::text(kind)),
    };
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    let text = words.join(" ");
    if text.chars().count() <= NAME_CHARS {
        return text;
    }
    text.chars().take(NAME_CHARS - 1).chain(['…']).collect()
}

fn state(gpu: &Gpu) -> String {
    let mut state = if gpu.up {
        "ok".to_owned()
    } else {
        let reason = gpu.lost_reason.as_deref().unwrap_or("unknown");
        let xid = gpu.lost_xid.as_ref().map_or_else(String::new, |xid| format!(", Xid {xid}"));
        format!("LOST: {reason}{xid}")
    };
    if let Some(action) = &gpu.recovery_action {
        state.push_str(&format!(", needs {action}"));
    }
    if gpu.foreign_processes.is_some_and(|count| count > 0.0) {
        state.push_str(", used by others");
    }
    show::text(&state)
}
