//! Relative positions as `DeBERTa` has them.

/// The part of `DeBERTa`'s scores that depends on relative positions (He et al., 2021, equation 4),
/// to be added to those of [`Attention`](super::Attention).
///
/// Inputs: `q` and `k [batch, seq, heads * head_dim]`, then `pos_k [2 span, heads * head_dim]` with
/// `c2p` and `pos_q` of the same shape with `p2c`. Output: `[batch, heads, seq, seq]`, at query `i`
/// and key `j` the sum of `scale q_i . pos_k_r` and `scale k_j . pos_q_r`, `r` being the
/// [`row`](Self::row) of the distance `i - j`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DisentangledBias {
    /// Number of heads.
    pub heads: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// Half the number of rows of the tables; rows further out are those at the ends.
    pub span: usize,
    /// Distances from `span / 2` on share rows logarithmically, up to this one (`DeBERTa` v2 and
    /// v3); then `span` is even.
    pub log_until: Option<usize>,
    /// Whether content looks at positions.
    pub c2p: bool,
    /// Whether positions look at content.
    pub p2c: bool,
}

impl DisentangledBias {
    /// The row of the tables for `distance` (query position less key position).
    pub fn row(&self, distance: i64) -> usize {
        let bucket = match self.log_until {
            Some(until) => log_bucket(distance, self.span / 2, until),
            None => distance,
        };
        let (span, last) = (self.span as i64, 2 * self.span as i64 - 1);
        bucket.saturating_add(span).clamp(0, last) as usize
    }

    /// The distance beyond which [`row`](Self::row) doesn't change, on either side.
    pub fn reach(&self) -> usize {
        self.log_until.unwrap_or(self.span).max(self.span)
    }
}

/// transformers' `make_log_bucket_position`, in single precision as there.
fn log_bucket(distance: i64, mid: usize, until: usize) -> i64 {
    let size = distance.unsigned_abs();
    if size <= mid as u64 {
        return distance;
    }
    let mid_f = mid as f32;
    let share = (size as f32 / mid_f).ln() / ((until as f32 - 1.0) / mid_f).ln();
    let bucket = (share * (mid_f - 1.0)).ceil() as i64 + mid as i64;
    bucket * distance.signum()
}
