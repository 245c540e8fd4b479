//! What a method learned about one model: a safetensors file whose header says of which model, from what, and how.
//!
//! The header is the file's metadata: `method`, `model` (a name for people), `fingerprint` (which a program compares), `data`, and
//! `settings` as JSON. A calibration of another method or another model is refused.

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A calibration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// It cannot be read or written.
    #[error("cannot use the calibration {origin}: {reason}; `kvik calibrate` makes one")]
    File {
        /// Its path.
        origin: String,
        /// What the system said, or what is wrong with it.
        reason: String,
    },
    /// It is another method's.
    #[error("{origin} is a calibration of {found}, not of {method}: `kvik calibrate {method}` makes one")]
    OtherMethod {
        /// Its path.
        origin: String,
        /// The method that made it.
        found: String,
        /// The method that wants it.
        method: String,
    },
    /// It is another model's.
    #[error(
        "{origin} was made for {made_for}, and this is another model, or another quantisation of it: `kvik calibrate {method}` makes one for it"
    )]
    OtherModel {
        /// Its path.
        origin: String,
        /// The model that it was made for.
        made_for: String,
        /// The method that wants it.
        method: String,
    },
}

/// Of what a calibration was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationHeader {
    /// The method.
    pub method: String,
    /// The model's name.
    pub model: String,
    /// Which model it is ([`KvShape::fingerprint`](crate::KvShape)).
    pub fingerprint: String,
    /// What it was made from.
    pub data: String,
    /// How, as JSON.
    pub settings: String,
}

/// A calibration that was read.
pub struct Calibration {
    /// Of what it was made.
    pub header: CalibrationHeader,
    origin: String,
    bytes: Vec<u8>,
}

impl Calibration {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`CalibrationError::File`] if there is none, or it is no calibration.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let origin = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Self::parse(origin, bytes),
            Err(error) => Err(CalibrationError::File { origin, reason: error.to_string() }),
        }
    }

    /// Reads the bytes of a file that messages call `origin`.
    ///
    /// # Errors
    /// [`CalibrationError::File`] if they are no calibration.
    pub fn parse(origin: String, bytes: Vec<u8>) -> Result<Self, CalibrationError> {
        let broken = |reason: String| CalibrationError::File { origin: origin.clone(), reason };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
        // Reads the tensors' places once, so that later reads find them.
        SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let fields = metadata.metadata().clone().unwrap_or_default();
        let field = |name: &str| {
            let missing = || broken(format!("its header does not say '{name}': it is no calibration"));
            fields.get(name).cloned().ok_or_else(missing)
        };
        let header = CalibrationHeader {
            method: field("method")?,
            model: field("model")?,
            fingerprint: field("fingerprint")?,
            data: field("data")?,
            settings: field("settings")?,
        };
        Ok(Self { header, origin, bytes })
    }

    /// Refuses what was made by another method, or for a model with another fingerprint.
    ///
    /// # Errors
    /// [`CalibrationError::OtherMethod`], [`CalibrationError::OtherModel`].
    pub fn check(&self, method: &str, fingerprint: &str) -> Result<(), CalibrationError> {
        let (origin, method) = (self.origin.clone(), method.to_owned());
        if self.header.method != method {
            return Err(CalibrationError::OtherMethod { origin, found: self.header.method.clone(), method });
        }
        if self.header.fingerprint != fingerprint {
            return Err(CalibrationError::OtherModel { origin, made_for: self.header.model.clone(), method });
        }
        Ok(())
    }

    /// The f32 numbers of a tensor of the given shape.
    ///
    /// # Errors
    /// [`CalibrationError::File`] if there is none of that name and shape.
    pub fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CalibrationError> {
        let broken = |reason: String| CalibrationError::File { origin: self.origin.clone(), reason };
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| broken(error.to_string()))?;
        let tensor = tensors.tensor(name).map_err(|error| broken(error.to_string()))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let (ty, found) = (tensor.dtype(), tensor.shape());
            return Err(broken(format!("'{name}' is {ty:?} {found:?} where F32 {shape:?} is needed")));
        }
        Ok(tensor.data().chunks_exact(4).map(|le| f32::from_le_bytes([le[0], le[1], le[2], le[3]])).collect())
    }

    /// The bytes of a calibration file with these f32 tensors: name, shape, numbers.
    ///
    /// # Panics
    /// If a tensor's shape and numbers do not fit.
    pub fn file(header: &CalibrationHeader, tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
        let CalibrationHeader { method, model, fingerprint, data, settings } = header;
        let fields = [
            ("method", method),
            ("model", model),
            ("fingerprint", fingerprint),
            ("data", data),
            ("settings", settings),
        ];
        let fields: HashMap<String, String> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, numbers)| numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
            (*name, view.expect("numbers fill their shape"))
        });
        safetensors::serialize(views.collect::<Vec<_>>(), Some(fields)).expect("a header is text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> CalibrationHeader {
        CalibrationHeader {
            method: "duo".into(),
            model: "a model".into(),
            fingerprint: "1234".into(),
            data: "a novel".into(),
            settings: "{\"steps\":3}".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_other_models_and_methods_are_refused() {
        let bytes = Calibration::file(&header(), &[("gates", &[2, 1], &[0.25, 1.0])]);
        let read = Calibration::parse("x".into(), bytes.clone()).unwrap();
        assert_eq!(read.header, header());
        assert_eq!(read.numbers("gates", &[2, 1]).unwrap(), [0.25, 1.0]);
        assert!(read.check("duo", "1234").is_ok());
        let said = |result: Result<(), CalibrationError>| result.unwrap_err().to_string();
        assert!(said(read.check("kvquant", "1234")).contains("a calibration of duo"));
        assert!(said(read.check("duo", "9")).contains("made for a model"));
        assert!(read.numbers("gates", &[1, 2]).unwrap_err().to_string().contains("[2, 1]"));
        assert!(read.numbers("other", &[1]).is_err());
        // Cut anywhere, it is refused or says what is missing, and nothing breaks.
        for len in 0..bytes.len() {
            assert!(Calibration::parse("x".into(), bytes[..len].to_vec()).is_err(), "{len}");
        }
        assert!(Calibration::read(Path::new("no/such/file")).is_err());
    }
}
