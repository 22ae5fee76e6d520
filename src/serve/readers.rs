//! Threads that answer without a conversation: each owns a model and reads what all requests that wait
//! bring, together.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use dlc_runtime::{CrossEncoder, QueryPair, Relevance, SentenceEncoder, TextVector};
use tokio::sync::oneshot;

use super::metrics::ModelMetrics;
use super::pictures::{Order, Paint, Painted};
use super::places::{Place, Waiting};
use super::problem::Problem;

/// A model that answers each item by itself.
pub(super) trait Reads: Send + 'static {
    type Item: Clone + Send + 'static;
    type Answer: Send + 'static;
    /// Items that are read together.
    const TOGETHER: usize;

    /// An answer for each item; `is_awaited` says whether anybody waits for them still.
    fn read(
        &mut self,
        items: &[Self::Item],
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<Vec<Self::Answer>, Problem>;
}

impl Reads for SentenceEncoder {
    type Item = String;
    type Answer = TextVector;
    const TOGETHER: usize = 64;

    fn read(&mut self, texts: &[String], _: &dyn Fn() -> bool) -> Result<Vec<TextVector>, Problem> {
        self.encode(texts).map_err(|error| Problem::of(&error))
    }
}

impl Reads for CrossEncoder {
    type Item = QueryPair;
    type Answer = Relevance;
    const TOGETHER: usize = 64;

    fn read(
        &mut self,
        pairs: &[QueryPair],
        _: &dyn Fn() -> bool,
    ) -> Result<Vec<Relevance>, Problem> {
        self.score(pairs).map_err(|error| Problem::of(&error))
    }
}

/// Any model that makes pictures.
#[derive(Debug)]
pub(super) struct Painter(pub Box<dyn Paint>);

impl Reads for Painter {
    type Item = Order;
    type Answer = Painted;
    const TOGETHER: usize = 1;

    fn read(
        &mut self,
        orders: &[Order],
        is_awaited: &dyn Fn() -> bool,
    ) -> Result<Vec<Painted>, Problem> {
        orders
            .iter()
            .map(|order| Ok(self.0.paint(order, is_awaited)?))
            .collect()
    }
}

/// The items of a request.
struct Job<R: Reads> {
    items: Vec<R::Item>,
    place: Place,
    answer: oneshot::Sender<Result<Vec<R::Answer>, Problem>>,
}

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Reader<R: Reads> {
    jobs: Sender<Job<R>>,
    /// Requests that may be under way or wait.
    most: usize,
    metrics: Arc<ModelMetrics>,
    /// Held by the thread as long as it works.
    life: Weak<()>,
}

impl<R: Reads> Reader<R> {
    /// Starts a thread for which `most_waiting` requests may wait.
    pub fn start(
        mut model: R,
        most_waiting: usize,
        metrics: Arc<ModelMetrics>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job<R>>();
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let of_thread = Arc::clone(&metrics);
        std::thread::Builder::new()
            .name("reader".into())
            .spawn(move || {
                while let Some(together) = next(&queue) {
                    answer(&mut model, together, &of_thread);
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

    /// The answers to items.
    pub async fn read(&self, items: Vec<R::Item>) -> Result<Vec<R::Answer>, Problem> {
        let ended = || Problem::failed("the model's thread has ended");
        let place = Place::take(&self.metrics, 1, self.most)?.pop();
        let place = place.ok_or_else(ended)?;
        let waiting = Waiting(place.clone());
        let (answer, receiver) = oneshot::channel();
        let job = Job {
            items,
            place,
            answer,
        };
        self.jobs.send(job).map_err(|_| ended())?;
        let answers = receiver.await.map_err(|_| ended())?;
        drop(waiting);
        answers
    }
}

/// The next requests, those apart that nobody waits for any more; None at the end.
fn next<R: Reads>(queue: &Receiver<Job<R>>) -> Option<Vec<Job<R>>> {
    let mut together = vec![queue.recv().ok()?];
    let mut items = together[0].items.len();
    while items < R::TOGETHER
        && let Ok(job) = queue.try_recv()
    {
        items += job.items.len();
        together.push(job);
    }
    together.retain(|job| !job.answer.is_closed());
    Some(together)
}

fn answer<R: Reads>(model: &mut R, together: Vec<Job<R>>, metrics: &ModelMetrics) {
    let running = together.len() as u64;
    // Before the queue is seen to be shorter.
    metrics.running.store(running, Ordering::SeqCst);
    for job in &together {
        job.place.leave();
    }
    let all: Vec<R::Item> = together.iter().flat_map(|job| job.items.clone()).collect();
    let is_awaited = || together.iter().any(|job| !job.answer.is_closed());
    match model.read(&all, &is_awaited) {
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for job in together {
                let own = answers.by_ref().take(job.items.len()).collect();
                let _ = job.answer.send(Ok(own));
            }
        }
        Err(problem) if together.len() == 1 => {
            for job in together {
                let _ = job.answer.send(Err(problem.clone()));
            }
        }
        // One that can't be read mustn't spoil the others' answers.
        Err(_) => {
            for job in together {
                let answers = model.read(&job.items, &|| !job.answer.is_closed());
                let _ = job.answer.send(answers);
            }
        }
    }
    metrics.running.store(0, Ordering::SeqCst);
}
