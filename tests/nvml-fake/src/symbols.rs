//! The dynamic symbols of a built library: which there are, and taking some away.
//!
//! A symbol is taken away by renaming it in the string table that the loader reads. The hash table still leads a
//! lookup of the old name to the entry, where the loader compares names and finds another one: `dlsym` fails as
//! with a driver that never had the function. Variants built with features or a version script would do the
//! same for one set each; this does it for any set, without a compiler, and leaves one library to build.

use thiserror::Error;

/// Functions that NVIDIA added after driver 418, and the branch that brought each.
const ADDED: [(&str, u32); 29] = [
    ("nvmlDeviceGetArchitecture", 450),
    ("nvmlDeviceGetMigMode", 450),
    ("nvmlDeviceGetMaxMigDeviceCount", 450),
    ("nvmlDeviceGetMigDeviceHandleByIndex", 450),
    ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", 450),
    ("nvmlDeviceIsMigDeviceHandle", 450),
    ("nvmlDeviceGetGpuInstanceId", 450),
    ("nvmlDeviceGetComputeInstanceId", 450),
    ("nvmlEventSetWait_v2", 450),
    ("nvmlDeviceGetAttributes_v2", 455),
    ("nvmlDeviceGetComputeRunningProcesses_v2", 455),
    ("nvmlDeviceGetGraphicsRunningProcesses_v2", 455),
    ("nvmlDeviceGetComputeRunningProcesses_v3", 510),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", 510),
    ("nvmlDeviceGetMemoryInfo_v2", 510),
    ("nvmlGpmMetricsGet", 525),
    ("nvmlGpmMigSampleGet", 525),
    ("nvmlGpmQueryDeviceSupport", 525),
    ("nvmlGpmSampleAlloc", 525),
    ("nvmlGpmSampleFree", 525),
    ("nvmlGpmSampleGet", 525),
    ("nvmlDeviceGetCurrentClocksEventReasons", 535),
    ("nvmlDeviceGetSupportedClocksEventReasons", 535),
    // Of Volta's time.
    ("nvmlDeviceGetTotalEnergyConsumption", 384),
    ("nvmlDeviceGetFieldValues", 384),
    ("nvmlDeviceGetPciInfo_v3", 390),
    ("nvmlSystemGetCudaDriverVersion_v2", 410),
    ("nvmlDeviceGetProcessUtilization", 375),
    ("nvmlInitWithFlags", 418),
];

/// The functions of the fake that a driver branch such as 470 does not have.
#[must_use]
pub fn newer_than(branch: u32) -> Vec<&'static str> {
    ADDED.iter().filter(|(_, added)| *added > branch).map(|(name, _)| *name).collect()
}

/// Why a symbol table could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SymbolError {
    /// Not a 64-bit little-endian ELF file with dynamic symbols.
    #[error("no ELF file with dynamic symbols")]
    NotElf,
    /// There is no such symbol.
    #[error("there is no symbol {0}")]
    Missing(String),
    /// Its name is part of another's.
    #[error("the linker keeps the name {0} inside another one")]
    Shared(String),
}

const SECTION_TYPE_DYNSYM: u32 = 11;
const SECTION_HEADER_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const UNDEFINED: u16 = 0;

/// A defined dynamic symbol.
struct Symbol {
    name: String,
    /// Where the name starts in the file.
    name_at: usize,
}

/// Names of all symbols that the library defines for others.
///
/// # Errors
/// Not such a file.
pub fn defined(library: &[u8]) -> Result<Vec<String>, SymbolError> {
    Ok(symbols(library)?.into_iter().map(|symbol| symbol.name).collect())
}

/// Takes a symbol away from a library.
///
/// # Errors
/// Not such a file, no such symbol, or one whose name cannot be changed alone.
pub fn hide(library: &mut [u8], name: &str) -> Result<(), SymbolError> {
    let all = symbols(library)?;
    let found = all.iter().find(|symbol| symbol.name == name);
    let at = found.ok_or_else(|| SymbolError::Missing(name.to_owned()))?.name_at;
    let holds = |symbol: &Symbol| {
        symbol.name != name && (symbol.name_at..symbol.name_at + symbol.name.len()).contains(&at)
    };
    if all.iter().any(holds) {
        return Err(SymbolError::Shared(name.to_owned()));
    }
    library[at] = b'X';
    Ok(())
}

fn symbols(library: &[u8]) -> Result<Vec<Symbol>, SymbolError> {
    read(library).ok_or(SymbolError::NotElf)
}

/// Walks section headers to the dynamic symbols and their names; `None` where a place is outside the file.
fn read(library: &[u8]) -> Option<Vec<Symbol>> {
    // ELF, 64 bits, little-endian.
    library.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]).then_some(())?;
    let headers = place(library, 0x28)?;
    let count = usize::from(u16::from_le_bytes(bytes(library, 0x3c)?));
    let header = |index: usize| headers.checked_add(index.checked_mul(SECTION_HEADER_BYTES)?);
    let dynsym = (0..count).filter_map(header).find(|at| {
        bytes(library, at + 4).is_some_and(|kind| u32::from_le_bytes(kind) == SECTION_TYPE_DYNSYM)
    })?;
    let (from, size) = (place(library, dynsym + 0x18)?, place(library, dynsym + 0x20)?);
    let names = header(u32::from_le_bytes(bytes(library, dynsym + 0x28)?) as usize)?;
    let names_at = place(library, names + 0x18)?;
    let mut found = Vec::new();
    for at in (from..from.checked_add(size)?).step_by(SYMBOL_BYTES) {
        let name_at = names_at.checked_add(u32::from_le_bytes(bytes(library, at)?) as usize)?;
        if u16::from_le_bytes(bytes(library, at + 6)?) != UNDEFINED {
            let text = library.get(name_at..)?.split(|byte| *byte == 0).next()?;
            found.push(Symbol { name: String::from_utf8_lossy(text).into_owned(), name_at });
        }
    }
    Some(found)
}

fn bytes<const N: usize>(library: &[u8], at: usize) -> Option<[u8; N]> {
    library.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A 64-bit offset in the file.
fn place(library: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes(library, at)?)).ok()
}
