//! The series of a snapshot: which there are, and apart from them their values.
//!
//! Which series there are changes rarely, their values with each window. So whoever writes them out does the
//! work of names, labels and their order once, and then but puts values in.

use std::ops::Range;
use std::sync::Arc;

use wattmill_protocol::catalogue::Metric;

use super::{Snapshot, visit};

/// Series, in the order in which [`visit`] tells them.
#[derive(Debug, Default, PartialEq)]
pub struct Shape {
    series: Vec<(&'static Metric, Range<usize>)>,
    /// Values of the labels of all series, one after the other.
    labels: Vec<Box<str>>,
}

impl Shape {
    fn of(snapshot: &Snapshot) -> Self {
        let mut shape = Self::default();
        visit(snapshot, |metric, labels, _| {
            let start = shape.labels.len();
            shape.labels.extend(labels.iter().map(|&label| Box::from(label)));
            shape.series.push((metric, start..shape.labels.len()));
        });
        shape
    }

    /// The series: metric, and a value for each of its labels.
    pub fn series(&self) -> impl Iterator<Item = (&'static Metric, &[Box<str>])> {
        self.series.iter().map(|(metric, labels)| (*metric, &self.labels[labels.clone()]))
    }

    fn is(&self, index: usize, metric: &'static Metric, labels: &[&str]) -> bool {
        let Some((own, range)) = self.series.get(index) else { return false };
        let own_labels = self.labels[range.clone()].iter().map(|label| &**label);
        std::ptr::eq(*own, metric) && own_labels.eq(labels.iter().copied())
    }
}

/// Takes snapshots apart; of those that have the same series the shape is the same one.
#[derive(Debug, Default)]
pub struct Flatten {
    shape: Arc<Shape>,
}

impl Flatten {
    /// The series of a snapshot, and the value of each.
    pub fn series(&mut self, snapshot: &Snapshot) -> (Arc<Shape>, Vec<f64>) {
        let mut values = Vec::with_capacity(self.shape.series.len());
        let mut same = true;
        visit(snapshot, |metric, labels, value| {
            same = same && self.shape.is(values.len(), metric, labels);
            values.push(value);
        });
        if !same || values.len() != self.shape.series.len() {
            self.shape = Arc::new(Shape::of(snapshot));
        }
        (Arc::clone(&self.shape), values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn a_shape_stays_as_long_as_the_series_do() {
        let mut flatten = Flatten::default();
        let mut snapshot = sample();
        let (first, values) = flatten.series(&snapshot);
        assert_eq!(first.series().count(), values.len());
        snapshot.useful_flops += 1;
        let (second, changed) = flatten.series(&snapshot);
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(values.iter().zip(&changed).filter(|(a, b)| a != b).count(), 1);
        // Another label, a series more, one less; none of them is the shape before it.
        let mut shapes = vec![first];
        let mut changed = |snapshot: &Snapshot| {
            let (shape, values) = flatten.series(snapshot);
            assert_eq!(*shape, Shape::of(snapshot));
            assert_eq!(shape.series().count(), values.len());
            assert!(!shapes.contains(&shape));
            shapes.push(shape);
        };
        snapshot.gpus[0].model.push('x');
        changed(&snapshot);
        snapshot.gpus[0].temperature_celsius = Some(40.0);
        changed(&snapshot);
        snapshot.gpus.pop();
        changed(&snapshot);
    }
}
