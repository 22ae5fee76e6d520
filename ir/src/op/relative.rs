//! Relative positions as `DeBERTa` has them, and as T5 and `MPNet` have them.

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

/// A number for each head and each bucket of distances, to be added to the scores of
/// [`Attention`](super::Attention) (Raffel et al., 2020, section 2.1, in both directions).
///
/// Inputs: `x [batch, seq, ...]`, of which only the length counts, and `table [buckets, heads]`.
/// Output: `[1, heads, seq, seq]`, at query `i` and key `j` the [`bucket`](Self::bucket) of the
/// distance `i - j`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketedBias {
    /// Rows of the table; a multiple of 4. The first half is for keys up to the query, the other
    /// for those after it. A quarter are distances of their own.
    pub buckets: usize,
    /// From here on all distances share a row; those before it share rows logarithmically.
    pub until: usize,
}

impl BucketedBias {
    /// The row of the table for `distance` (query position less key position), in single precision
    /// where transformers computes so.
    pub fn bucket(&self, distance: i64) -> usize {
        let (half, exact) = (self.buckets / 2, self.buckets / 4);
        let later = if distance < 0 { half } else { 0 };
        let size = distance.unsigned_abs();
        if size < exact as u64 {
            return later + size as usize;
        }
        let share =
            (size as f32 / exact as f32).ln() / (self.until as f64 / exact as f64).ln() as f32;
        let bucket = exact + (share * (half - exact) as f32) as usize;
        later + bucket.min(half - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::BucketedBias;

    /// The distances at which the bucket changes, as `MPNetEncoder.relative_position_bucket` of
    /// transformers 5.24 has them.
    #[test]
    fn buckets_change_where_those_of_transformers_change() {
        let bias = BucketedBias {
            buckets: 32,
            until: 128,
        };
        let changes: Vec<i64> = (-1000..1000)
            .filter(|d| bias.bucket(*d) != bias.bucket(d - 1))
            .collect();
        assert_eq!(changes, CHANGES);
        let ends = [-1000, -1, 0, 1, 1000].map(|d| bias.bucket(d));
        assert_eq!(ends, [31, 17, 0, 1, 15]);
    }

    const CHANGES: [i64; 30] = [
        -90, -63, -45, -31, -22, -15, -11, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8,
        12, 16, 23, 32, 46, 64, 91,
    ];
}
