//! What pictures are ordered as, and who paints them.

use std::fmt;

use super::problem::Problem;

/// Pictures of one prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Order {
    /// What they show.
    pub prompt: String,
    /// What guidance leads away from; None for the usual.
    pub negative_prompt: Option<String>,
    /// How many.
    pub count: usize,
    /// Width and height in pixels; None for the model's own.
    pub size: Option<[usize; 2]>,
    /// The seed of the first; each further one has the next.
    pub seed: u64,
    /// Steps of the sampler; None for those that the bundle is made for.
    pub steps: Option<usize>,
    /// Strength of classifier-free guidance; None for the bundle's.
    pub guidance: Option<f64>,
}

/// The pictures of an order.
#[derive(Debug, Clone, PartialEq)]
pub struct Painted {
    /// A PNG file of each.
    pub files: Vec<Vec<u8>>,
    /// Their width and height in pixels.
    pub size: [usize; 2],
    /// What whoever ordered them should know: words that were cut off, for one.
    pub notes: Vec<String>,
}

/// A model that makes pictures of texts.
pub trait Paint: fmt::Debug + Send {
    /// The pictures of an order. Stops between two steps when nobody awaits them any more.
    ///
    /// # Errors
    /// Why the order can't be carried out, or what failed.
    fn paint(
        &mut self,
        order: &Order,
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<Painted, PaintError>;
}

/// Why there is no picture.
#[derive(Debug)]
pub enum PaintError {
    /// The order is at fault.
    Order(String),
    /// Something else is.
    Failed(String),
}

impl From<PaintError> for Problem {
    fn from(error: PaintError) -> Self {
        match error {
            PaintError::Order(message) => Self::request(message),
            PaintError::Failed(message) => Self::failed(message),
        }
    }
}
