//! The thread that makes vectors: it owns an encoder, and reads the texts of all requests that wait
//! together.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use dlc_runtime::{SentenceEncoder, TextVector};
use tokio::sync::oneshot;

use super::metrics::ModelMetrics;
use super::places::{Place, Waiting};
use super::problem::Problem;

/// Texts that are read together.
const TOGETHER: usize = 64;

/// The texts of a request.
struct Job {
    texts: Vec<String>,
    place: Place,
    answer: oneshot::Sender<Result<Vec<TextVector>, Problem>>,
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Encoder {
    jobs: Sender<Job>,
    /// Requests that may be under way or wait.
    most: usize,
    metrics: Arc<ModelMetrics>,
    /// Held by the thread as long as it works.
    life: Weak<()>,
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
            most: most_waiting + 1,
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
        let ended = || Problem::failed("the model's thread has ended");
        let place = Place::take(&self.metrics, 1, self.most)?.pop();
        let place = place.ok_or_else(ended)?;
        let waiting = Waiting(place.clone());
        let (answer, receiver) = oneshot::channel();
        let job = Job {
            texts,
            place,
            answer,
        };
        self.jobs.send(job).map_err(|_| ended())?;
        let vectors = receiver.await.map_err(|_| ended())?;
        drop(waiting);
        vectors
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
    // Before the queue is seen to be shorter.
    metrics.running.store(running, Ordering::SeqCst);
    for job in &together {
        job.place.leave();
    }
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
