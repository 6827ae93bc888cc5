//! Prometheus' HTTP service discovery of the agents that advertise their `/metrics`.
//!
//! Invariant: what is served is what Prometheus takes: an array of target groups, each address a
//! `host:port`, each label name a valid one. Anything else is left out, as one bad group would make
//! Prometheus refuse the whole answer.

use std::collections::BTreeMap;

use serde::Serialize;

/// `Content-Type` that Prometheus demands of the answer.
pub(crate) const SD_CONTENT_TYPE: &str = "application/json";

/// An agent that may be scraped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// `host:port`, as the agent advertises it.
    pub(crate) address: String,
    /// Labels of its series, such as `node` and `name`.
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Group<'a> {
    targets: [&'a str; 1],
    labels: BTreeMap<&'a str, &'a str>,
}

/// The answer for `/sd`, targets by address.
///
/// # Errors
/// When JSON cannot express it, which strings always can.
pub(crate) fn service_discovery(targets: &[Target]) -> Result<String, serde_json::Error> {
    let mut valid: Vec<&Target> = targets.iter().filter(|target| is_address(&target.address)).collect();
    valid.sort();
    let groups = valid.into_iter().map(|target| Group {
        targets: [&target.address],
        labels: target
            .labels
            .iter()
            .filter(|(name, _)| is_label_name(name))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect(),
    });
    serde_json::to_string_pretty(&groups.collect::<Vec<_>>())
}

/// A host and a port, without a scheme or a path.
fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match bare {
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    host && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_label_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(address: &str, labels: &[(&str, &str)]) -> Target {
        let labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Target { address: address.to_owned(), labels }
    }

    #[test]
    fn only_what_prometheus_takes_is_served() {
        let targets = [
            target("node-b:9766", &[("node", "b"), ("name", "say \"b\"")]),
            target("[2001:db8::1]:9766", &[("bad-name", "x"), ("9", "x"), ("", "x")]),
            target("http://node-c:9766/metrics", &[]),
            target("node-d", &[]),
            target("", &[]),
            target(":9766", &[]),
            target("node-e:0", &[]),
            target("node-f:+1", &[]),
        ];
        let json: serde_json::Value = serde_json::from_str(&service_discovery(&targets).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                {"targets": ["[2001:db8::1]:9766"], "labels": {}},
                {"targets": ["node-b:9766"], "labels": {"node": "b", "name": "say \"b\""}},
            ])
        );
        assert_eq!(service_discovery(&[]).unwrap(), "[]", "an empty array, not null");
    }
}
