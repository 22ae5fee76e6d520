//! Tensors of the weight file that a graph reads as they are, or as codes.

use dlc_ir::DType;

use super::super::builder::{Builder, Name};
use crate::error::ExportError;
use crate::weights::Stored;

/// A tensor of the weight file, which becomes an initializer where it is read.
pub(super) struct Part {
    pub stored: Stored,
    pub name: Name,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Part {
    /// The tensor as it is.
    pub fn whole(&self, b: &mut Builder) -> Name {
        let stored = self.stored.clone();
        b.stored(stored, &self.name, self.dtype, &self.shape);
        self.name.clone()
    }

    /// Its bytes as codes of 4 bits in this shape, another initializer over the same bytes.
    ///
    /// # Errors
    /// [`ExportError::Module`] if another tensor has the name of that.
    pub fn codes(&self, b: &mut Builder, shape: [usize; 2]) -> Result<Name, ExportError> {
        let codes = b.stored_codes(self.stored.clone(), &self.name, &shape);
        codes.ok_or_else(|| {
            ExportError::module(&*self.name, "a tensor has the name of this one's codes")
        })
    }
}
