//! Several figures by number in one call.

use std::ffi::{c_int, c_longlong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t, nvmlReturn_t, nvmlValue_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
};

use super::{code, driver, on_device, whole};
use crate::machine::error::NvmlError;
use crate::machine::fields::{FieldValue, read, typed};
use crate::machine::{FixedField, Machine};

const NAME: &str = "nvmlDeviceGetFieldValues";

/// Fields that one call may ask for: more is a bug of the caller.
const MAX_FIELDS: usize = 1024;

/// Answers each element by its `fieldId` and `scopeId`: the call succeeds, and each has its own return code.
///
/// # Safety
/// `values` is null or valid for reads and writes of `count` elements whose ids are initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    let length = usize::try_from(count).ok().filter(|length| (1..=MAX_FIELDS).contains(length));
    let answers = on_device(NAME, device, |machine, target, now_ns| {
        let length = length.filter(|_| !values.is_null()).ok_or(NvmlError::InvalidArgument)?;
        let slot = whole(target)?;
        let mut answers = Vec::with_capacity(length);
        for index in 0..length {
            // SAFETY: `values` is not null, hence valid for `count` elements by the caller's promise.
            let (field, scope) = unsafe {
                let asked = values.add(index);
                ((*asked).fieldId, (*asked).scopeId)
            };
            answers.push((field, scope, answer(machine, slot, field, scope, now_ns)));
        }
        Ok((now_ns, answers))
    });
    code(answers.map(|(now_ns, answers)| {
        let timestamp = c_longlong::try_from(driver::wall_microseconds(now_ns)).unwrap_or(c_longlong::MAX);
        for (index, (field, scope, answer)) in answers.into_iter().enumerate() {
            let filled = fill(field, scope, answer, timestamp);
            // SAFETY: as above, and `index` is below the `count` that `answers` was made for.
            unsafe { values.add(index).write(filled) };
        }
    }))
}

/// A field of a GPU, unless a test fixed it.
fn answer(
    machine: &Machine,
    slot: usize,
    field: u32,
    scope: u32,
    now_ns: u64,
) -> Result<FieldValue, NvmlError> {
    match machine.fixed_field(slot, field) {
        Some(FixedField::Value(value)) => Ok(typed(field, value)),
        Some(FixedField::Error(error)) => Err(error),
        None => {
            let gpu = machine.gpu(slot, NAME)?;
            read(gpu, &machine.config().driver_version, field, scope, now_ns)
        }
    }
}

fn fill(
    field: u32,
    scope: u32,
    answer: Result<FieldValue, NvmlError>,
    timestamp: c_longlong,
) -> nvmlFieldValue_t {
    let (value_type, value) = match answer {
        Ok(FieldValue::U32(figure)) => (UNSIGNED_INT, nvmlValue_t { ullVal: u64::from(figure) }),
        Ok(FieldValue::U64(figure)) => (UNSIGNED_LONG_LONG, nvmlValue_t { ullVal: figure }),
        Err(_) => (UNSIGNED_INT, nvmlValue_t { ullVal: 0 }),
    };
    nvmlFieldValue_t {
        fieldId: field,
        scopeId: scope,
        timestamp,
        latencyUsec: 0,
        valueType: value_type,
        nvmlReturn: code(answer.map(|_| ())),
        value,
    }
}
