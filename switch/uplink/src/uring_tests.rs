//! Tests of [`super`]: kicks, signals, sleep, and frames over sockets that keep message boundaries as a TAP does.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use hostweave_switch::stage::DropReason;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;
use crate::limits::{HEADER_LEN, LARGE_READ_BUFFERS, LARGE_READ_MIN};
use crate::sys::Mode;

const SHORT: Option<Duration> = Some(Duration::from_millis(30));
const LONG: Option<Duration> = Some(Duration::from_secs(5));

fn eventfd() -> (EventFd, Arc<OwnedFd>) {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let shared = Arc::new(eventfd.as_fd().try_clone_to_owned().unwrap());
    (eventfd, shared)
}

fn kicks(uring: &mut Uring) -> Vec<u64> {
    let mut tokens = Vec::new();
    uring.poll_completions(&mut |event| match event {
        Event::Kick { token } => tokens.push(token),
        other => panic!("unexpected {other:?}"),
    });
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Whether a wait of [`SHORT`] ends because nothing happens.
fn sleeps(uring: &mut Uring) -> bool {
    let started = Instant::now();
    uring.wait(SHORT);
    started.elapsed() >= Duration::from_millis(25)
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_kick_tells_once_and_does_not_spin() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    uring.arm_kick(7, shared);
    assert!(sleeps(&mut uring));
    for _ in 0..3 {
        eventfd.write(1).unwrap();
        uring.wait(LONG);
        assert_eq!(kicks(&mut uring), [7]);
        assert!(sleeps(&mut uring), "the counter stays above zero, which is no news");
        assert_eq!(kicks(&mut uring), []);
    }
}

#[test]
fn an_eventfd_that_was_written_before_tells_at_once() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    eventfd.write(5).unwrap();
    uring.arm_kick(1, shared);
    uring.wait(LONG);
    assert_eq!(kicks(&mut uring), [1]);
    assert!(sleeps(&mut uring));
}

#[test]
fn a_nap_is_not_ended_by_what_arrives_and_loses_none_of_it() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    uring.arm_kick(7, shared);
    uring.submit();
    eventfd.write(1).unwrap();
    let nap = Duration::from_millis(20);
    let started = Instant::now();
    uring.nap(nap);
    // A lower bound only: nobody wakes too early.
    assert!(started.elapsed() >= nap);
    assert_eq!(kicks(&mut uring), [7]);
    uring.nap(Duration::from_micros(1));
    assert_eq!(kicks(&mut uring), []);
}

#[test]
fn arming_again_is_free_and_keeps_a_kick_that_came_before() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    uring.arm_kick(3, Arc::clone(&shared));
    uring.submit();
    eventfd.write(1).unwrap();
    uring.arm_kick(3, Arc::clone(&shared));
    assert_eq!(uring.kicks.len(), 1);
    uring.wait(LONG);
    assert_eq!(kicks(&mut uring), [3]);
    uring.arm_kick(3, shared);
    assert!(sleeps(&mut uring), "told already");
}

#[test]
fn disarming_lets_go_of_the_eventfd() {
    let mut uring = Uring::new().unwrap();
    uring.submit();
    let (eventfd, shared) = eventfd();
    for round in 0..100 {
        uring.arm_kick(round, Arc::clone(&shared));
        uring.disarm(round);
        eventfd.write(1).unwrap();
        uring.submit();
        assert_eq!(kicks(&mut uring), [], "round {round}");
    }
    let other = self::eventfd().1;
    uring.arm_kick(200, Arc::clone(&shared));
    uring.arm_kick(200, other);
    uring.submit();
    kicks(&mut uring);
    eventfd.write(1).unwrap();
    assert!(sleeps(&mut uring), "the token has another eventfd now");
    assert_eq!(Arc::strong_count(&shared), 1);
    assert!(uring.kicks.len() <= 3, "slots are used again: {}", uring.kicks.len());
}

#[test]
fn thousands_of_armed_kicks_and_all_at_once() {
    let mut uring = Uring::new().unwrap();
    // Many tokens may watch one eventfd: a write completes each of their polls.
    let (eventfd, shared) = eventfd();
    let count = u64::from(COMPLETIONS) + 500;
    for token in 0..count {
        uring.arm_kick(token, Arc::clone(&shared));
    }
    uring.submit();
    assert_eq!(kicks(&mut uring), []);
    for round in 0..2 {
        eventfd.write(1).unwrap();
        let mut seen = std::collections::HashSet::new();
        let started = Instant::now();
        while seen.len() < count as usize && started.elapsed() < Duration::from_secs(20) {
            uring.wait(SHORT);
            seen.extend(kicks(&mut uring));
        }
        assert_eq!(seen.len(), count as usize, "round {round}");
    }
}

#[test]
fn no_kick_is_lost_between_threads() {
    const ROUNDS: u64 = 20_000;
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    let posted = Arc::new(AtomicU64::new(0));
    let taken = Arc::new(AtomicU64::new(0));
    let guest = std::thread::spawn({
        let (posted, taken) = (Arc::clone(&posted), Arc::clone(&taken));
        move || {
            for round in 1..=ROUNDS {
                posted.store(round, Ordering::SeqCst);
                eventfd.write(1).unwrap();
                let started = Instant::now();
                // Every third packet is followed at once, so that kicks also come while the switch polls.
                while round % 3 == 0 && taken.load(Ordering::SeqCst) < round {
                    assert!(started.elapsed() < Duration::from_secs(90), "packet {round} was never seen");
                    std::hint::spin_loop();
                }
            }
        }
    });
    while taken.load(Ordering::SeqCst) < ROUNDS {
        uring.arm_kick(1, Arc::clone(&shared));
        // Looked at once more after arming, as a worker does after it turned notifications on.
        if taken.load(Ordering::SeqCst) == posted.load(Ordering::SeqCst) {
            let started = Instant::now();
            // Longer than a busy machine keeps the other thread from running.
            uring.wait(Some(Duration::from_secs(60)));
            assert!(started.elapsed() < Duration::from_secs(50), "a kick was lost");
        }
        kicks(&mut uring);
        taken.store(posted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    guest.join().unwrap();
}

#[test]
fn signals_arrive_and_leave_no_completion() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    for _ in 0..3_000 {
        uring.signal(Arc::clone(&shared));
    }
    uring.submit();
    assert_eq!(eventfd.read().unwrap(), 3_000);
    assert_eq!(Arc::strong_count(&shared), 1);
    assert!(sleeps(&mut uring), "success is silent");
    assert_eq!(uring.signals_refused(), 0);
}

#[test]
fn a_hostile_call_eventfd_never_blocks() {
    let mut uring = Uring::new().unwrap();
    let (full, shared_full) = eventfd();
    full.write(u64::MAX - 1).unwrap();
    let blocking = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    blocking.write(u64::MAX - 1).unwrap();
    let shared_blocking = Arc::new(blocking.as_fd().try_clone_to_owned().unwrap());
    let (good, shared_good) = eventfd();
    let started = Instant::now();
    for _ in 0..100 {
        uring.signal(Arc::clone(&shared_full));
        uring.signal(Arc::clone(&shared_blocking));
        uring.signal(Arc::clone(&shared_good));
        uring.submit();
        assert_eq!(kicks(&mut uring), []);
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(good.read().unwrap(), 100);
    assert_eq!(uring.signals_refused(), 200);
    drop(uring);
    assert_eq!(full.read().unwrap(), u64::MAX - 1, "nothing was left behind that waits for room");
}

#[test]
fn a_saturated_kick_eventfd_does_not_spin() {
    let mut uring = Uring::new().unwrap();
    let (eventfd, shared) = eventfd();
    eventfd.write(u64::MAX - 1).unwrap();
    uring.arm_kick(1, shared);
    uring.wait(LONG);
    assert_eq!(kicks(&mut uring), [1]);
    assert!(sleeps(&mut uring));
}

#[test]
fn a_kick_that_is_no_eventfd_fails_instead_of_spinning() {
    let mut uring = Uring::new().unwrap();
    // Always ready, and nobody can wait for it. The check at the door is elsewhere, but this must not hurt.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    uring.arm_kick(9, Arc::new(file.into()));
    let mut failed = 0;
    for _ in 0..1_000 {
        uring.wait(Some(Duration::from_millis(1)));
        uring.poll_completions(&mut |event| failed += u32::from(matches!(event, Event::Failed { token: 9, .. })));
    }
    assert_eq!(failed, 1);
    assert!(sleeps(&mut uring));
    uring.disarm(9);
}

#[test]
fn wakes_end_the_sleep_and_none_is_lost() {
    const ROUNDS: u64 = 20_000;
    let mut uring = Uring::new().unwrap();
    let waker = uring.waker();
    waker.wake();
    let started = Instant::now();
    uring.wait(LONG);
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(sleeps(&mut uring));
    let sent = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let sender = std::thread::spawn({
        let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let next = sent.load(Ordering::Relaxed) + 1;
                sent.store(next, Ordering::Release);
                waker.wake();
                if next % 7 == 0 {
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut seen = 0;
    for _ in 0..ROUNDS {
        if sent.load(Ordering::Acquire) == seen {
            let started = Instant::now();
            uring.wait(LONG);
            assert!(started.elapsed() < Duration::from_secs(4), "a wake was lost");
        }
        seen = sent.load(Ordering::Acquire);
    }
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
}

fn pair() -> (Arc<Stream>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Arc::new(Stream::new(PortId(6), ours.into(), Kind::File, HEADER_LEN)), theirs)
}

fn content(frame: &Frame) -> Vec<u8> {
    let mut octets = vec![0xa5; frame.len()];
    frame.data().copy_to(&mut octets);
    octets
}

/// Frames of all devices until none came for a while; each is released at once.
fn frames(uring: &mut Uring) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        let mut events = Vec::new();
        uring.wait(SHORT);
        uring.poll_completions(&mut |event| events.push(event));
        if events.is_empty() {
            return found;
        }
        for event in events {
            match event {
                Event::Frame { token, frame } => {
                    found.push((token, content(&frame)));
                    uring.release(frame);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

#[test]
fn frames_arrive_in_order_and_buffers_come_back() {
    let mut uring = Uring::new().unwrap();
    let (device, peer) = pair();
    uring.start(5, Arc::clone(&device));
    uring.submit();
    for round in 0..5u8 {
        // A socket pair holds few datagrams; the buffers of the worker go round several times.
        for number in 0..40u8 {
            if peer.send(&[round, number, 3]).is_err() {
                break;
            }
        }
        let received = frames(&mut uring);
        assert!(received.len() >= 10, "{}", received.len());
        for (number, (token, octets)) in received.iter().enumerate() {
            assert_eq!((*token, octets.as_slice()), (5, &[round, number as u8, 3][..]));
        }
    }
    let large = vec![0x5a; FRAME_BUFFER - 1];
    peer.send(&large).unwrap();
    assert_eq!(frames(&mut uring), [(5, large)]);
    peer.send(&[2]).unwrap();
    assert_eq!(frames(&mut uring), [(5, vec![2])]);
    uring.stop(5);
    peer.send(&[1]).unwrap();
    assert_eq!(frames(&mut uring), []);
    assert_eq!(uring.reads.as_ref().unwrap().provided(), READ_BUFFERS);
    assert!(uring.readers.iter().all(Option::is_none));
    assert_eq!(Arc::strong_count(&device), 1);
    assert_eq!(Arc::strong_count(&device.fd), 1);
}

#[test]
fn large_frames_are_read_into_few_buffers_and_small_ones_into_all() {
    for mode in Mode::ALL {
        let mut uring = in_mode(mode);
        let (device, peer) = pair();
        uring.start(5, device);
        uring.submit();
        let mut places = Vec::new();
        let mut bring = |uring: &mut Uring, frame: &[u8]| {
            let mut events = Vec::new();
            let end = Instant::now() + Duration::from_secs(20);
            peer.send(frame).unwrap();
            while events.is_empty() {
                assert!(Instant::now() < end, "{mode:?}");
                uring.wait(SHORT);
                uring.poll_completions(&mut |event| events.push(event));
            }
            let Some(Event::Frame { frame: came, .. }) = events.pop() else { panic!("{mode:?}: {events:?}") };
            assert!(events.is_empty() && content(&came) == frame, "{mode:?}");
            places.push(came.data().address());
            uring.release(came);
        };
        let large = vec![0x5a; LARGE_READ_MIN];
        (0..200).for_each(|_| bring(&mut uring, &large));
        assert_eq!(uring.reads.as_ref().unwrap().provided(), LARGE_READ_BUFFERS);
        (0..usize::from(READ_BUFFERS)).for_each(|_| bring(&mut uring, &[7]));
        assert_eq!(uring.reads.as_ref().unwrap().provided(), READ_BUFFERS);
        let distinct = |places: &[_]| places.iter().collect::<std::collections::HashSet<_>>().len();
        assert!(distinct(&places[100..200]) <= usize::from(LARGE_READ_BUFFERS), "{mode:?}");
        assert_eq!(distinct(&places[..64]), usize::from(READ_BUFFERS), "{mode:?}: each of them comes once");
    }
}

/// As on a kernel that knows no better mode; the two older ones read one frame a request.
fn in_mode(mode: Mode) -> Uring {
    Uring::with_ring(Ring::with_mode(mode, SUBMISSIONS, COMPLETIONS).unwrap()).unwrap()
}

#[test]
fn every_mode_brings_kicks_signals_and_wakes() {
    for mode in Mode::ALL {
        let mut uring = in_mode(mode);
        let (eventfd, shared) = eventfd();
        uring.arm_kick(7, Arc::clone(&shared));
        assert!(sleeps(&mut uring), "{mode:?}");
        for _ in 0..3 {
            eventfd.write(1).unwrap();
            uring.wait(LONG);
            assert_eq!(kicks(&mut uring), [7], "{mode:?}");
            assert!(sleeps(&mut uring), "{mode:?}");
        }
        // Without a sleep: only by looking at memory.
        eventfd.write(1).unwrap();
        let started = Instant::now();
        while kicks(&mut uring).is_empty() {
            uring.submit();
            assert!(started.elapsed() < Duration::from_secs(5), "{mode:?}");
        }
        uring.disarm(7);
        eventfd.read().unwrap();
        uring.signal(shared);
        uring.submit();
        assert_eq!(eventfd.read().unwrap(), 1, "{mode:?}");
        let waker = uring.waker();
        let waking = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            waker.wake();
        });
        let started = Instant::now();
        uring.wait(LONG);
        assert!(started.elapsed() < Duration::from_secs(4), "{mode:?}");
        waking.join().unwrap();
    }
}

#[test]
fn older_modes_bring_every_frame() {
    for mode in [Mode::Cooperative, Mode::Plain] {
        let mut uring = in_mode(mode);
        let (device, peer) = pair();
        uring.start(5, device);
        uring.submit();
        for _ in 0..5 {
            for number in 0..10 {
                peer.send(&[number]).unwrap();
            }
            // Several reads wait at once; each takes the next frame only when it completes.
            let numbers: Vec<u8> = frames(&mut uring).into_iter().map(|(_, octets)| octets[0]).collect();
            assert_eq!(numbers, (0..10).collect::<Vec<u8>>(), "{mode:?}");
        }
        uring.stop(5);
        frames(&mut uring);
        assert!(uring.readers.iter().all(Option::is_none), "{mode:?}");
        assert_eq!(uring.reads.as_ref().unwrap().provided(), READ_BUFFERS, "{mode:?}");
    }
}

#[test]
fn a_flooding_device_does_not_starve_the_others() {
    let mut uring = Uring::new().unwrap();
    let (loud, loud_peer) = pair();
    let (quiet, quiet_peer) = pair();
    uring.start(1, loud);
    uring.start(2, quiet);
    uring.submit();
    let mut held = Vec::new();
    let mut quiet_seen = 0;
    for round in 0..50u32 {
        while loud_peer.send(&[1; 64]).is_ok() {}
        if round % 5 == 4 {
            quiet_peer.send(&[2; 64]).unwrap();
        }
        uring.submit();
        uring.poll_completions(&mut |event| match event {
            Event::Frame { token, frame } => {
                quiet_seen += u32::from(token == 2);
                held.push(frame);
            }
            other => panic!("unexpected {other:?}"),
        });
        // Buffers come back late, so that the kernel runs out of them again and again.
        if round % 3 == 2 {
            held.drain(..).for_each(|frame| uring.release(frame));
        }
    }
    held.drain(..).for_each(|frame| uring.release(frame));
    quiet_seen += frames(&mut uring).iter().filter(|(token, _)| *token == 2).count() as u32;
    assert_eq!(quiet_seen, 10);
}

#[test]
fn a_device_that_goes_away_fails_once() {
    let mut uring = Uring::new().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    uring.start(8, Arc::new(Stream::new(PortId(6), ours.into(), Kind::File, HEADER_LEN)));
    uring.submit();
    drop(theirs);
    uring.wait(LONG);
    let mut failed = Vec::new();
    uring.poll_completions(&mut |event| match event {
        Event::Failed { token, .. } => failed.push(token),
        other => panic!("unexpected {other:?}"),
    });
    assert_eq!(failed, [8]);
    assert!(sleeps(&mut uring));
    uring.stop(8);
    uring.submit();
    assert!(uring.readers.iter().all(Option::is_none));
}

#[test]
fn writes_arrive_and_a_full_device_is_told() {
    let mut uring = Uring::new().unwrap();
    let (device, peer) = pair();
    let mut sent: u32 = 0;
    let refused = loop {
        let number = sent;
        match uring.write(&device, |buffer| {
            buffer[..4].copy_from_slice(&number.to_be_bytes());
            Some(4)
        }) {
            Ok(()) => sent += 1,
            Err(reason) => break reason,
        }
        assert!(sent < 10_000);
    };
    assert_eq!(refused, DropReason::DeviceQueueFull);
    // A socket that is full, which a TAP never is, may let later frames overtake.
    let mut arrived = std::collections::BTreeSet::new();
    let started = Instant::now();
    while arrived.len() < sent as usize && started.elapsed() < Duration::from_secs(5) {
        let mut octets = [0; 8];
        while let Ok(len) = peer.recv(&mut octets) {
            assert!(arrived.insert(u32::from_be_bytes(octets[..len].try_into().unwrap())));
        }
        uring.wait(Some(Duration::from_millis(5)));
        kicks(&mut uring);
    }
    assert!(arrived.into_iter().eq(0..sent));
    assert_eq!(uring.write(&device, |_| None), Err(DropReason::FrameTooLong));
    assert_eq!(device.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn a_frame_that_the_device_does_not_take_is_told() {
    let mut uring = Uring::new().unwrap();
    let (device, peer) = pair();
    drop(peer);
    uring.write(&device, |_| Some(HEADER_LEN + 60)).unwrap();
    uring.submit();
    uring.wait(LONG);
    let mut refused = Vec::new();
    uring.poll_completions(&mut |event| match event {
        Event::Refused { port, octets } => refused.push((port, octets)),
        other => panic!("unexpected {other:?}"),
    });
    assert_eq!(refused, [(PortId(6), 60)]);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn dropping_it_with_everything_in_flight_leaks_no_file() {
    let before = open_files();
    for _ in 0..50 {
        let mut uring = Uring::new().unwrap();
        let (device, peer) = pair();
        let (_, kick) = eventfd();
        uring.arm_kick(1, kick);
        uring.start(2, Arc::clone(&device));
        while uring.write(&device, |_| Some(64)).is_ok() {}
        peer.send(&[1]).unwrap();
        uring.submit();
    }
    // Other tests run beside this one.
    assert!(open_files() < before + 40, "{before} before, {} after", open_files());
}
