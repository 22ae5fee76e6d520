//! The target of a pass as it is scored by Fisher information: here, or by shards elsewhere.

use dlc_ir::{Graph, WeightTable};

use crate::context::PassContext;
use crate::error::PassError;
use crate::kept::Kept;
use crate::quantize::in_floats;
use crate::scoring::{FisherScores, Head, Objective, fisher, most_links};
use crate::sources::ScoreParts;
use crate::sums::{FisherSums, ScoreRequest, Shard, ShardScores};

/// What is scored, and by which loss.
pub(crate) struct FisherWork {
    graph: Graph,
    weights: WeightTable,
    objective: Objective,
    head: Option<Head>,
    /// What stopped runs keep is kept under it, before module and samples.
    name: &'static str,
}

impl FisherWork {
    /// Of a graph that may have products with codes; `with_head` also of the head's matrix.
    pub fn new(
        (graph, weights): (&Graph, &WeightTable),
        objective: Objective,
        with_head: bool,
        name: &'static str,
    ) -> Result<Self, PassError> {
        let (graph, weights) = in_floats(graph, weights)?;
        let head = if with_head { Head::of(&graph) } else { None };
        Ok(Self {
            graph,
            weights,
            objective,
            head,
            name,
        })
    }

    /// The scores on all samples, of what others found, if they did.
    pub fn scores(
        &self,
        samples: &[Vec<u32>],
        given: Option<&dyn ScoreParts>,
        cx: &PassContext<'_>,
    ) -> Result<FisherScores, PassError> {
        let sums = match given {
            Some(parts) => parts.sums(&self.request(samples, cx))?,
            None => self.sums(samples, cx)?,
        };
        let head = self.head.as_ref();
        cx.pool
            .install(|| fisher::means(&sums, &self.graph, &self.weights, head))
    }

    /// The sums over the samples of a shard.
    pub fn shard(
        &self,
        shard: Shard,
        samples: &[Vec<u32>],
        cx: &PassContext<'_>,
    ) -> Result<ShardScores, PassError> {
        let own = shard.of(samples)?;
        let sums = self.sums(&own, cx);
        if !matches!(sums, Err(PassError::Interrupted)) {
            self.forget(&own, cx);
        }
        let (request, sums) = (self.request(samples, cx), sums?);
        match sums.unsound() {
            Some((entry, value)) => Err(PassError::NotFinite {
                pass: self.name,
                score: "fit",
                unit: entry.to_owned(),
                value,
            }),
            None => Ok(ShardScores { request, sums }),
        }
    }

    /// Forgets what stopped runs have kept of scoring these samples.
    pub fn forget(&self, samples: &[Vec<u32>], cx: &PassContext<'_>) {
        let key = self.key(samples, cx);
        fisher::forget(Kept::new(cx.cache, &key), most_links(&self.graph));
    }

    fn key(&self, samples: &[Vec<u32>], cx: &PassContext<'_>) -> String {
        format!("{} gradients 3 {} {samples:?}", self.name, cx.module_key)
    }

    fn request(&self, samples: &[Vec<u32>], cx: &PassContext<'_>) -> ScoreRequest {
        ScoreRequest {
            module_key: cx.module_key.clone(),
            objective: self.objective.name(),
            samples: samples.to_vec(),
            layout: fisher::layout(&self.graph, &self.weights, self.head.as_ref()),
        }
    }

    fn sums(&self, samples: &[Vec<u32>], cx: &PassContext<'_>) -> Result<FisherSums, PassError> {
        let key = self.key(samples, cx);
        let (kept, head) = (Kept::new(cx.cache, &key), self.head.as_ref());
        cx.pool.install(|| {
            let (graph, weights) = (&self.graph, &self.weights);
            let progress = cx.progress;
            fisher::sums(
                graph,
                weights,
                self.objective,
                samples,
                head,
                kept,
                progress,
            )
        })
    }
}
