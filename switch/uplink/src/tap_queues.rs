//! A TAP device with several queues (`IFF_MULTI_QUEUE`), for an uplink that several workers receive from: each frame that the
//! kernel sends there comes to one of them, chosen by where it goes (`steering.rs`). Any of them takes what we send.
//!
//! A device that exists keeps the kind that it was made with. One with a single queue (made by `ip tuntap`, or by a version of
//! hostweave that knew no other) is used as it is: it has addresses and routes that somebody gave it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::netlink::interfaces::tap_queues;
use crate::netns::{BUSY_LIMIT, TapDevice, TapRequest, attach, check_name, device_error, open_tun, set_up};
use crate::{Error, bpf, steering, sys};

/// How long until a device that is busy is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// A device that is ready for [`crate::device::Device::tap`], once for each of its queues.
#[derive(Debug)]
pub struct TapQueues {
    /// At least one.
    pub queues: Vec<TapDevice>,
    /// Why there are fewer than wanted.
    pub fewer: Option<Error>,
}

/// Makes the device in the calling thread's namespace, or takes over the one that an earlier daemon left, with `count` queues,
/// at least one. Blocks for up to 2 s: not for workers.
///
/// # Errors
/// A bad name, missing capabilities, a device that another process uses, or that is no TAP device.
pub fn open_tap_queues(request: &TapRequest, count: usize) -> Result<TapQueues, Error> {
    check_name(&request.name)?;
    let name = &request.name;
    let Some(first) = own_alone(name)? else {
        let fewer = (count > 1).then(|| Error::SingleQueue(name.clone()));
        return Ok(TapQueues { queues: vec![device(attach(request)?, name)], fewer });
    };
    set_up(first.as_fd(), request)?;
    let mut queues = vec![first];
    let fewer = match count {
        0 | 1 => steer(queues[0].as_fd(), name, None).err(),
        _ => add(&mut queues, name, count).err(),
    };
    if fewer.is_some() {
        queues.truncate(1);
    }
    Ok(TapQueues { queues: queues.into_iter().map(|fd| device(fd, name)).collect(), fewer })
}

fn device(fd: OwnedFd, name: &str) -> TapDevice {
    TapDevice { fd, name: name.to_owned(), namespace: None }
}

/// Becomes the only owner of the device. `None` when it is not of this kind.
fn own_alone(name: &str) -> Result<Option<OwnedFd>, Error> {
    let started = Instant::now();
    loop {
        let tun = open_tun(name)?;
        match sys::tun_attach(tun.as_fd(), name, sys::Queues::Several) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(device_error(name, "attach to it", error)),
        }
        // The kernel lets anybody have another queue, and a daemon that was killed keeps its own for a moment.
        if tap_queues(name)? == 1 {
            return Ok(Some(tun));
        }
        drop(tun);
        if started.elapsed() >= BUSY_LIMIT {
            return Err(Error::Busy(name.to_owned()));
        }
        std::thread::sleep(AGAIN);
    }
}

/// Adds queues up to `count`, and has the kernel choose among them.
fn add(queues: &mut Vec<OwnedFd>, name: &str, count: usize) -> Result<(), Error> {
    let program = bpf::load_filter(&steering::of_queues());
    let program =
        program.map_err(|error| device_error(name, "load the program that steers frames to workers", error))?;
    steer(queues[0].as_fd(), name, Some(program.as_fd()))?;
    while queues.len() < count {
        let tun = open_tun(name)?;
        sys::tun_attach(tun.as_fd(), name, sys::Queues::Several)
            .map_err(|error| device_error(name, "add a queue", error))?;
        queues.push(tun);
    }
    Ok(())
}

fn steer(queue: BorrowedFd<'_>, name: &str, program: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    sys::tun_steer(queue, program).map_err(|error| device_error(name, "steer frames to workers", error))
}
