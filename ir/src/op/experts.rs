//! Mixtures of experts.

use super::GroupFormat;

/// The gated MLPs of a mixture, of which each token goes through a few (Shazeer et al., 2017; Jiang
/// et al., 2024).
///
/// `x [..., width]`, `logits [..., n]`, then for each of `n` experts the matrices
/// `gate [inner, width]`, `up [inner, width]` and `down [width, inner]` -> `[..., width]`.
///
/// With `p = softmax(logits)` in single precision, a token's output is the sum over the `top`
/// experts `e` of the largest `p` of `share_e * down_e (silu(gate_e x) * (up_e x))`. Which of equal
/// `p` is taken is left open, as torch's `topk` leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many experts a token goes through.
    pub top: usize,
    /// Whether `share_e` is `p_e` divided by the sum of those of the token's experts; else `p_e`.
    pub normalized: bool,
    /// How the matrices are quantised, if they are. Each is then `codes`, `scales` and optionally
    /// `zero_points`, as those of a `quantized_linear`; all have zero points, or none.
    pub format: Option<GroupFormat>,
}

impl Experts {
    /// Inputs before the experts' matrices.
    pub const LEADING: usize = 2;
    /// Matrices of an expert: gate, up and down.
    pub const MATRICES: usize = 3;

    /// How many inputs a matrix takes. `rank` is how many axes the third input after
    /// [`LEADING`](Self::LEADING) has: zero points have two, the codes of the next matrix three.
    #[must_use]
    pub fn parts(self, rank: usize) -> usize {
        match self.format {
            None => 1,
            Some(_) if rank == 2 => 3,
            Some(_) => 2,
        }
    }
}
