//! amdgpu's `gpu_metrics`: a table of the firmware's whose layout is the kernel's ABI
//! (`drivers/gpu/drm/amd/include/kgd_pp_interface.h`).
//!
//! Pure. Invariant: only layouts whose unit of energy that header states are believed.

/// More than any table: the largest known, 1.8, has some 3 KiB.
pub(super) const MAX_TABLE_BYTES: usize = 16 << 10;
/// A count is 2^-16 J.
const COUNTS_PER_JOULE: u128 = 1 << 16;
/// Layouts of accelerators and cards; those of APUs are 2 and 3.
const DISCRETE: u8 = 1;

/// A table.
pub(super) struct Table<'a>(&'a [u8]);

impl<'a> Table<'a> {
    /// The table, unless it is shorter than it says.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let size = usize::from(u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]));
        (size >= 4 && size <= bytes.len()).then(|| Self(&bytes[..size]))
    }

    /// Whether it is one of an APU's, whose power is the whole package's.
    pub(super) fn is_of_apu(&self) -> bool {
        self.0[2] > DISCRETE
    }

    /// Energy of the socket in microjoules, since the firmware began to count. Of MI300 and newer: older tables
    /// (1.0 to 1.3) have a field whose unit is not stated, and 1.9 is no fixed layout.
    pub(super) fn energy_microjoules(&self) -> Option<u64> {
        let at = match (self.0[2], self.0[3]) {
            (DISCRETE, 4 | 7 | 8) => 24,
            (DISCRETE, 5) => 88,
            (DISCRETE, 6) => 16,
            _ => return None,
        };
        let counts = u64::from_le_bytes(self.0.get(at..at + 8)?.try_into().ok()?);
        // All ones is how the driver says that the firmware does not tell.
        let counts = Some(counts).filter(|counts| *counts != 0 && *counts != u64::MAX)?;
        u64::try_from(u128::from(counts) * 1_000_000 / COUNTS_PER_JOULE).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A table with a count of energy, as the driver of an MI300 writes it.
    pub(in super::super) fn table(format: u8, content: u8, at: usize, counts: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; 288];
        bytes[..2].copy_from_slice(&288u16.to_le_bytes());
        (bytes[2], bytes[3]) = (format, content);
        bytes[at..at + 8].copy_from_slice(&counts.to_le_bytes());
        bytes
    }

    fn energy(bytes: &[u8]) -> Option<u64> {
        Table::new(bytes)?.energy_microjoules()
    }

    #[test]
    fn energy_is_where_the_layout_puts_it_in_its_unit() {
        for (content, at) in [(4, 24), (5, 88), (6, 16), (7, 24), (8, 24)] {
            assert_eq!(energy(&table(1, content, at, 65_536)), Some(1_000_000), "1.{content}");
        }
        assert_eq!(energy(&table(1, 4, 24, 3)), Some(45), "45.78 µJ");
        assert_eq!(energy(&table(1, 4, 24, 1 << 63)), None, "141 TJ: no GPU has drawn that");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        for content in [0, 1, 2, 3, 9, 200] {
            assert_eq!(energy(&table(1, content, 24, 65_536)), None, "1.{content}");
        }
        assert_eq!(energy(&table(2, 4, 24, 65_536)), None, "an APU's");
        assert_eq!(energy(&table(1, 4, 24, 0)), None);
        assert_eq!(energy(&table(1, 4, 24, u64::MAX)), None);
        for short in [&b""[..], b"\x20", b"\x20\x01\x01\x04", b"\x04\x00\x01\x04", b"\x00\x00\x01\x04"] {
            assert_eq!(energy(short), None);
        }
    }

    #[test]
    fn an_apu_is_told_by_its_layout() {
        for (format, apu) in [(1, false), (2, true), (3, true)] {
            assert_eq!(Table::new(&table(format, 1, 24, 0)).unwrap().is_of_apu(), apu);
        }
    }
}
