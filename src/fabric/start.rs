//! Starts the workers: a thread each, pinned, with an `io_uring` and a flow cache of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use anyhow::Context;
use arc_swap::ArcSwap;
use hostweave_nat::Nat;
use hostweave_switch::connection::Connections;
use hostweave_switch::flow::FlowCache;
use hostweave_switch::fragment::Fragments;
use hostweave_uplink::uring::Uring;

use super::mailbox::Mailbox;
use super::plane::Plane;
use crate::worker::clock::Clock;
use crate::worker::watch::Watch;
use crate::worker::{FLOWS_MAX, NOTES_MAX, Shared, Worker, WorkerStats};

/// What a worker is given.
pub(super) struct Seat {
    pub index: usize,
    pub cpu: Option<usize>,
    /// Workers of the host.
    pub count: usize,
    pub plane: Arc<ArcSwap<Plane>>,
    pub connections: Arc<Connections>,
    pub nat: Arc<Nat>,
    pub fragments: Arc<Fragments>,
    pub clock: Clock,
    pub watch: Arc<Watch>,
    pub listener: std::thread::Thread,
}

/// Starts a worker's thread and waits until it is ready.
///
/// # Errors
/// The kernel refuses the thread, its CPU, its `io_uring` or memory.
pub(super) fn start_worker(seat: Seat) -> anyhow::Result<(Arc<Shared>, JoinHandle<()>)> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let name = format!("hw-worker-{}", seat.index);
    let body = move || {
        let prepared = prepare_worker(seat);
        match prepared {
            Ok((shared, uring, cache)) => {
                if sender.send(Ok(Arc::clone(&shared))).is_ok() {
                    or_abort(|| Worker::new(shared, uring, cache).run());
                }
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(body).context("starting a worker")?;
    let shared = receiver.recv().context("a worker ended before it was ready")??;
    Ok((shared, thread))
}

/// Runs the body of a thread that the host cannot do without. A panic there is a bug, and a daemon that goes on with
/// dead ports is worse than none: the process ends, the service manager starts it again, and guests reconnect.
pub(super) fn or_abort(body: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
        tracing::error!("a worker or the maintenance thread panicked, which is a bug of hostweave; the daemon ends");
        std::process::abort();
    }
}

fn prepare_worker(seat: Seat) -> anyhow::Result<(Arc<Shared>, Uring, FlowCache)> {
    let Seat { index, cpu, count, plane, connections, nat, fragments, clock, watch, listener } = seat;
    if let Some(cpu) = cpu {
        let mut set = nix::sched::CpuSet::new();
        set.set(cpu).with_context(|| format!("worker {index}: CPU {cpu} is out of range"))?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
            .with_context(|| format!("worker {index}: this process may not run on CPU {cpu}"))?;
    }
    // Else the kernel may let a nap of microseconds last 50 longer.
    nix::sys::prctl::set_timerslack(1_000)
        .with_context(|| format!("worker {index}: the kernel refused exact timers"))?;
    let uring = Uring::new().with_context(|| format!("worker {index}: the kernel refused an io_uring"))?;
    // Both directions of each connection, wherever they are seen; workers share them more or less evenly.
    let flows = (2 * connections.capacity() as usize).div_ceil(count);
    let cache = FlowCache::new(flows).with_context(|| format!("worker {index}: no memory for {flows} flows"))?;
    let shared = Arc::new(Shared {
        index,
        plane,
        connections,
        nat,
        fragments,
        clock,
        flows: crossbeam_queue::ArrayQueue::new(FLOWS_MAX),
        flows_awaited: std::sync::atomic::AtomicBool::new(true),
        mailbox: Mailbox::new(uring.waker()),
        notes: crossbeam_queue::ArrayQueue::new(NOTES_MAX),
        listener,
        revision: AtomicU64::new(0),
        stats: WorkerStats::default(),
        watch,
    });
    Ok((shared, uring, cache))
}
