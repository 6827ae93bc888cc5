//! The one call of the `gemm` crate.
//!
//! Invariant: the bits of a product depend on its shape and strides, on the operands and on the
//! instruction set alone. `gemm` cuts long sums by the size of the caches, hence differently on
//! different processors, but never sums of up to [`DEPTH`] products: longer ones are cut here.
#![allow(unsafe_code, reason = "`gemm` takes pointers; the proof stands at the one call")]

use gemm::Parallelism;

/// Products that one call sums. `gemm` 0.19 (`kernel_params`, and the shortcut for products of up to
/// 64 × 64) never cuts a sum of 512 or fewer, whatever the caches.
const DEPTH: usize = 512;

/// A matrix that lies in a slice with strides.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix that fills the slice.
    ///
    /// # Panics
    /// If `data` is not `rows × columns` long.
    pub(crate) fn row_major(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(rows.checked_mul(columns), Some(data.len()), "a matrix fills its slice");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// `count` rows from `first` on.
    ///
    /// # Panics
    /// If the matrix has fewer rows.
    pub(crate) fn rows(self, first: usize, count: usize) -> Self {
        assert!(first.checked_add(count).is_some_and(|end| end <= self.rows), "rows lie in the matrix");
        let start = (first * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: count, ..self }
    }

    /// `count` columns from `first` on.
    ///
    /// # Panics
    /// If the matrix has fewer columns.
    fn columns(self, first: usize, count: usize) -> Self {
        self.transposed().rows(first, count).transposed()
    }

    /// Writes the sum of each row, its columns added in order.
    ///
    /// Meant for a transposed matrix, whose columns are contiguous: they are added as vectors.
    ///
    /// # Panics
    /// If `sums` has not one element per row, or rows are not contiguous in memory.
    pub(crate) fn sum_rows(self, sums: &mut [f32]) {
        assert_eq!((self.rows, self.row_stride), (sums.len(), 1), "one sum per contiguous row");
        sums.fill(0.0);
        for column in 0..self.columns {
            let values = &self.data[column * self.column_stride..][..self.rows];
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }

    /// Whether every element of the view lies in its slice.
    fn is_inside(&self) -> bool {
        if self.rows == 0 || self.columns == 0 {
            return true;
        }
        let last_row = (self.rows - 1).checked_mul(self.row_stride);
        let last_column = (self.columns - 1).checked_mul(self.column_stride);
        last_row
            .zip(last_column)
            .and_then(|(row, column)| row.checked_add(column))
            .is_some_and(|last| last < self.data.len())
    }
}

/// `product = left · right`, where `product` is row-major and filled. Serial.
///
/// # Panics
/// If the shapes do not fit: a defect of this crate, not of its caller's data.
pub(crate) fn multiply(product: &mut [f32], left: View<'_>, right: View<'_>) {
    assert_eq!(left.columns, right.rows, "inner sizes agree");
    if left.columns == 0 {
        return product.fill(0.0);
    }
    let cuts = left.columns.div_ceil(DEPTH);
    let depth = left.columns.div_ceil(cuts);
    for start in (0..left.columns).step_by(depth) {
        let count = depth.min(left.columns - start);
        call(product, left.columns(start, count), right.rows(start, count), start > 0);
    }
}

/// `product = left · right`, added to what `product` held if `accumulate`.
fn call(product: &mut [f32], left: View<'_>, right: View<'_>, accumulate: bool) {
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    assert_eq!(rows.checked_mul(columns), Some(product.len()), "the product fills its slice");
    assert!(depth == right.rows && left.is_inside() && right.is_inside(), "operands lie in their slices");
    // SAFETY: `gemm` reads `left[i, p]`, `right[p, j]` and writes `product[i, j]` for i < rows,
    // j < columns, p < depth, at the given strides. The asserts above have just shown that the largest
    // index of each lies in its slice, and all strides are positive, so all of them do. Slices are at
    // most isize::MAX bytes, so a stride below a slice's length fits isize; a stride at least that long
    // belongs to a dimension of one element, is multiplied by 0 only, and fits as well, since it is a
    // dimension or 1. `product` is borrowed mutably and so overlaps neither operand; every f32 pattern is
    // valid; the operands outlive the call, which is serial.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            product.as_mut_ptr(),
            1,
            columns as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use proptest::prelude::*;

    fn random(length: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64::new(seed);
        (0..length).map(|_| random.unit() - 0.5).collect()
    }

    fn reference(left: &[f32], right: &[f32], [m, n, k]: [usize; 3]) -> Vec<f64> {
        let at = |i: usize, j: usize| {
            (0..k).map(|p| f64::from(left[i * k + p]) * f64::from(right[p * n + j])).sum()
        };
        (0..m * n).map(|index| at(index / n, index % n)).collect()
    }

    proptest! {
        #[test]
        fn products_are_right(m in 1usize..70, n in 1usize..70, k in 1usize..1_300) {
            let (left, right) = (random(m * k, 1), random(k * n, 2));
            let mut product = vec![f32::NAN; m * n];
            multiply(&mut product, View::row_major(&left, m, k), View::row_major(&right, k, n));
            for (ours, exact) in product.iter().zip(reference(&left, &right, [m, n, k])) {
                prop_assert!((f64::from(*ours) - exact).abs() < 1e-4, "{} {}", ours, exact);
            }
        }

        #[test]
        fn transposed_operands_are_right(m in 1usize..40, n in 1usize..40, k in 1usize..40) {
            let (left, right) = (random(m * k, 3), random(k * n, 4));
            let transpose = |data: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|index| data[index % rows * columns + index / rows]).collect()
            };
            let (tall, wide) = (transpose(&left, m, k), transpose(&right, k, n));
            let mut product = vec![f32::NAN; m * n];
            let left_view = View::row_major(&tall, k, m).transposed();
            multiply(&mut product, left_view, View::row_major(&wide, n, k).transposed());
            for (ours, exact) in product.iter().zip(reference(&left, &right, [m, n, k])) {
                prop_assert!((f64::from(*ours) - exact).abs() < 1e-5, "{} {}", ours, exact);
            }
        }
    }

    #[test]
    fn rows_and_columns_select() {
        let data = random(12, 5);
        let view = View::row_major(&data, 3, 4).rows(1, 2).columns(1, 2);
        let identity = [1.0, 0.0, 0.0, 1.0];
        let mut product = [0.0; 4];
        multiply(&mut product, view, View::row_major(&identity, 2, 2));
        assert_eq!(product, [data[5], data[6], data[9], data[10]]);
    }

    #[test]
    #[should_panic(expected = "rows lie in the matrix")]
    fn rows_outside_are_refused() {
        let _ = View::row_major(&[0.0; 6], 2, 3).rows(1, 2);
    }

    #[test]
    #[should_panic(expected = "the product fills its slice")]
    fn a_short_product_is_refused() {
        let data = [1.0; 4];
        let view = View::row_major(&data, 2, 2);
        multiply(&mut [0.0; 3], view, view);
    }
}
