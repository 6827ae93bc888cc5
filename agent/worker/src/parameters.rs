//! Parameters as a safetensors file, which PyTorch loads under the names of `torch.nn.Sequential`.
//!
//! The layout that the collector relies on: 8 bytes of header length `N` (little-endian), `N` bytes of
//! header, then the kernel's flat `f32` vector in little-endian, without a gap. The crate's own `serialize`
//! sorts tensors by name, which would put each bias before its weight and layer 10 before layer 2, so the
//! header is written here; readers go by its offsets.
//!
//! Invariant: equal parameters of equal models give equal bytes.

use bytes::Bytes;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};
use wattmill_kernel::Model;

/// Bytes of an `f32`.
const F32_BYTES: usize = 4;
/// The header is padded to a multiple of this, as the crate does, so that the payload is aligned.
const HEADER_ALIGNMENT: usize = 8;

/// A file does not hold parameters of the job's model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParametersError {
    /// Not a safetensors file.
    #[error("the parameters are not a safetensors file")]
    Format(#[source] SafeTensorError),
    /// A tensor is absent.
    #[error("the parameters lack the tensor {0:?} of the job's model")]
    Missing(String),
    /// A tensor is of another model.
    #[error(
        "tensor {name:?} of the parameters is {actual_type:?} {actual:?}; the job's model has F32 {expected:?}"
    )]
    Shape {
        /// Its name.
        name: String,
        /// Its type in the file.
        actual_type: Dtype,
        /// Its shape in the file.
        actual: Vec<usize>,
        /// Its shape in the model.
        expected: Vec<usize>,
    },
    /// There are tensors that the model has not.
    #[error("the parameters have {actual} tensors; the job's model has {expected}")]
    Count {
        /// Tensors of the file.
        actual: usize,
        /// Tensors of the model.
        expected: usize,
    },
}

/// The file of `parameters`, which are flat, in the order of [`Model::tensors`].
///
/// # Errors
/// [`ParametersError::Format`] if the header cannot be made; no [`Model`] leads there.
pub(crate) fn encode(model: &Model, parameters: &[f32]) -> Result<Bytes, ParametersError> {
    let info = |spec: wattmill_kernel::TensorSpec| {
        let length: usize = spec.shape.iter().product();
        let data_offsets = (spec.offset * F32_BYTES, (spec.offset + length) * F32_BYTES);
        (spec.name, TensorInfo { dtype: Dtype::F32, shape: spec.shape, data_offsets })
    };
    let tensors = model.tensors().into_iter().map(info).collect();
    let metadata = Metadata::new(None, tensors).map_err(ParametersError::Format)?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| ParametersError::Format(error.into()))?;
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');

    let mut file = Vec::with_capacity(size_of::<u64>() + header.len() + parameters.len() * F32_BYTES);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    file.extend(parameters.iter().flat_map(|value| value.to_le_bytes()));
    Ok(file.into())
}

/// The flat parameters of a file whose tensors lie in any order.
///
/// # Errors
/// [`ParametersError`] if the file is none or is of another model.
pub(crate) fn decode(model: &Model, file: &[u8]) -> Result<Vec<f32>, ParametersError> {
    let file = SafeTensors::deserialize(file).map_err(ParametersError::Format)?;
    let specs = model.tensors();
    let mut parameters = Vec::with_capacity(model.parameters());
    for spec in &specs {
        let tensor = file.tensor(&spec.name).map_err(|_| ParametersError::Missing(spec.name.clone()))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != spec.shape {
            return Err(ParametersError::Shape {
                name: spec.name.clone(),
                actual_type: tensor.dtype(),
                actual: tensor.shape().to_vec(),
                expected: spec.shape.clone(),
            });
        }
        let (values, _) = tensor.data().as_chunks();
        parameters.extend(values.iter().map(|&value| f32::from_le_bytes(value)));
    }
    if file.len() != specs.len() {
        return Err(ParametersError::Count { actual: file.len(), expected: specs.len() });
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use wattmill_kernel::{Activation, Layer};

    /// Twelve layers, so that names sort otherwise than they are computed.
    fn deep() -> Model {
        let layer = |index: usize| Layer {
            units: 3 + index,
            activation: if index == 11 { Activation::Linear } else { Activation::Relu },
        };
        Model::new(5, &(0..12).map(layer).collect::<Vec<_>>()).unwrap()
    }

    fn le_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn the_payload_is_the_flat_vector() {
        let model = deep();
        let parameters = model.initialise(3);
        let file = encode(&model, &parameters).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(header % 8, 0);
        assert_eq!(file[8 + header..], le_bytes(&parameters));
        assert_eq!(file, encode(&model, &parameters).unwrap());
        assert_eq!(decode(&model, &file).unwrap(), parameters);
    }

    #[test]
    fn the_names_lead_to_the_tensors() {
        let model = deep();
        let parameters = model.initialise(3);
        let file = encode(&model, &parameters).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(file.len(), 24);
        for spec in model.tensors() {
            let tensor = file.tensor(&spec.name).unwrap();
            assert_eq!(tensor.shape(), spec.shape);
            let length: usize = spec.shape.iter().product();
            assert_eq!(tensor.data(), le_bytes(&parameters[spec.offset..][..length]));
        }
    }

    #[test]
    fn files_of_other_writers_are_read_by_name() {
        let model = deep();
        let parameters = model.initialise(3);
        let payload = le_bytes(&parameters);
        let tensors = model.tensors().into_iter().map(|spec| {
            let length = spec.shape.iter().product::<usize>() * F32_BYTES;
            let data = &payload[spec.offset * F32_BYTES..][..length];
            (spec.name, TensorView::new(Dtype::F32, spec.shape, data).unwrap())
        });
        let file = safetensors::serialize(tensors, None).unwrap();
        assert_ne!(file, encode(&model, &parameters).unwrap(), "the crate sorts by name");
        assert_eq!(decode(&model, &file).unwrap(), parameters);
    }

    #[test]
    fn files_of_other_models_are_refused() {
        let linear = |units| Layer { units, activation: Activation::Linear };
        let encoded = |model: &Model| encode(model, &model.initialise(1)).unwrap().to_vec();
        let model = Model::new(2, &[linear(3)]).unwrap();
        let mut halves = encoded(&model);
        let at = halves.windows(3).position(|bytes| bytes == b"F32").unwrap();
        halves[at..at + 3].copy_from_slice(b"I32");
        let deeper = Model::new(2, &[linear(3), linear(3)]).unwrap();
        let table = [
            (encoded(&Model::new(4, &[linear(3)]).unwrap()), "is F32 [3, 4]; the job's model has F32 [3, 2]"),
            (halves, "is I32 [3, 2]"),
            (encoded(&deeper), "have 4 tensors; the job's model has 2"),
            (encoded(&model)[..20].to_vec(), "not a safetensors file"),
            (Vec::new(), "not a safetensors file"),
        ];
        for (file, expected) in table {
            let error = decode(&model, &file).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = decode(&deeper, &encoded(&model)).unwrap_err().to_string();
        assert!(error.contains("lack the tensor \"1.weight\""), "{error}");
    }
}
