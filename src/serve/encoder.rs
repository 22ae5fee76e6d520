//! The thread that makes vectors: it owns an encoder, and reads the texts of all requests that wait
//! together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use dlc_runtime::{SentenceEncoder, TextVector};
use tokio::sync::oneshot;

use super::metrics::ModelMetrics;
use super::problem::Problem;

/// Texts that are read together.
const TOGETHER: usize = 64;

/// The texts of a request.
struct Job {
    texts: Vec<String>,
    answer: oneshot::Sender<Result<Vec<TextVector>, Problem>>,
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Encoder {
    jobs: Sender<Job>,
    most_waiting: u64,
    metrics: Arc<ModelMetrics>,
    /// Held by the thread as long as it works.
    life: std::sync::Weak<()>,
}

impl Encoder {
    /// Starts a thread for which `most_waiting` requests may wait.
    pub fn start(
        mut encoder: SentenceEncoder,
        most_waiting: usize,
        metrics: Arc<ModelMetrics>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let of_thread = Arc::clone(&metrics);
        std::thread::Builder::new()
            .name("encoder".into())
            .spawn(move || {
                while let Some(together) = next(&queue) {
                    answer(&mut encoder, together, &of_thread);
                }
                drop(alive);
            })?;
        Ok(Self {
            jobs,
            most_waiting: most_waiting as u64 + 1,
            metrics,
            life,
        })
    }

    /// Whether the thread still works.
    pub fn lives(&self) -> bool {
        self.life.strong_count() > 0
    }

    /// The vectors of texts.
    pub async fn encode(&self, texts: Vec<String>) -> Result<Vec<TextVector>, Problem> {
        let waiting = Waiting::new(&self.metrics.waiting, self.most_waiting)?;
        let (answer, receiver) = oneshot::channel();
        let ended = || Problem::failed("the model's thread has ended");
        self.jobs.send(Job { texts, answer }).map_err(|_| ended())?;
        let vectors = receiver.await.map_err(|_| ended())?;
        drop(waiting);
        vectors
    }
}

/// A place among those who wait.
struct Waiting<'m>(&'m AtomicU64);

impl<'m> Waiting<'m> {
    fn new(waiting: &'m AtomicU64, most: u64) -> Result<Self, Problem> {
        let before = waiting.fetch_add(1, Ordering::SeqCst);
        let place = Self(waiting);
        if before >= most {
            return Err(Problem::full(before as usize));
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The next requests, those apart that nobody waits for any more; None at the end.
fn next(queue: &Receiver<Job>) -> Option<Vec<Job>> {
    let mut together = vec![queue.recv().ok()?];
    let mut texts = together[0].texts.len();
    while texts < TOGETHER
        && let Ok(job) = queue.try_recv()
    {
        texts += job.texts.len();
        together.push(job);
    }
    together.retain(|job| !job.answer.is_closed());
    Some(together)
}

fn answer(encoder: &mut SentenceEncoder, together: Vec<Job>, metrics: &ModelMetrics) {
    let running = together.len() as u64;
    metrics.running.store(running, Ordering::SeqCst);
    let all: Vec<String> = together.iter().flat_map(|job| job.texts.clone()).collect();
    match encoder.encode(&all) {
        Ok(vectors) => {
            let mut vectors = vectors.into_iter();
            for job in together {
                let own = vectors.by_ref().take(job.texts.len()).collect();
                let _ = job.answer.send(Ok(own));
            }
        }
        // One that can't be read mustn't spoil the others' answers.
        Err(_) => {
            for job in together {
                let vectors = encoder.encode(&job.texts);
                let _ = job
                    .answer
                    .send(vectors.map_err(|error| Problem::of(&error)));
            }
        }
    }
    metrics.running.store(0, Ordering::SeqCst);
}
