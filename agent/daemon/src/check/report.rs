//! What `check` found, for people and for programs.
//!
//! Invariant: whatever does not work as it should says what to do.

use std::fmt::Write;

use serde::Serialize;

/// How something stands, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works.
    Ok,
    /// It is not there, and nobody asked for it.
    Absent,
    /// It works, and less well than it could: something is left out, or open to others.
    Warning,
    /// It was asked for, or should work, and does not.
    Failed,
}

impl Status {
    /// All, in order.
    const ALL: [Self; 4] = [Self::Ok, Self::Absent, Self::Warning, Self::Failed];

    /// As the table shows it.
    fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "-",
            Self::Warning => "WARN",
            Self::Failed => "FAILED",
        }
    }

    /// As the last line counts it.
    fn counted(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "absent",
            Self::Warning => "to look at",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do; empty when there is nothing to do.
    pub mend: String,
}

impl Finding {
    pub(super) fn new(
        what: &'static str,
        status: Status,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { what, status, detail: detail.into(), mend: mend.into() }
    }
}

/// Whether nothing that was asked for fails. Warnings pass.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.status != Status::Failed)
}

/// Findings as a table for people.
pub fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, status, detail, mend } in findings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:width$}  {:6}  {detail}", status.mark());
        if !mend.is_empty() {
            let _ = writeln!(text, "{:width$}  {:6}  -> {mend}", "", "");
        }
    }
    let count = |status: Status| findings.iter().filter(|finding| finding.status == status).count();
    let counts = Status::ALL.iter().map(|status| format!("{} {}", count(*status), status.counted()));
    let _ = writeln!(text, "\n{}", counts.collect::<Vec<_>>().join(", "));
    text
}

/// Findings as JSON: `passed`, the `worst` status, the agent's `version`, and each finding.
pub fn json(findings: &[Finding]) -> String {
    // What is absent is no worse than what works.
    let worst =
        findings.iter().map(|finding| finding.status).filter(|status| *status != Status::Absent).max();
    let worst = worst.unwrap_or(Status::Ok);
    serde_json::json!({
        "passed": passed(findings),
        "worst": worst,
        "version": crate::VERSION,
        "findings": findings,
    })
    .to_string()
}

/// A configuration that cannot be read, as a finding.
pub fn configuration(error: String) -> Finding {
    let mend = "correct the file that it names; docs/configuration.md lists every key";
    Finding::new("configuration", Status::Failed, error, mend)
}
