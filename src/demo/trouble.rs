//! What the network must not let happen, and what it must outlive: strangers, lies, a broken ring, a killed daemon.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use hostweave_guest::Profile;
use hostweave_guest::frames::Path;
use hostweave_guest::hostile::rings;
use hostweave_switch::MacAddr;

use super::ledger::balance;
use super::story::{Cast, Story};
use super::traffic::Stream;
use crate::guests::lies;
use crate::guests::member::{PATIENCE, Port, short};

/// How long a silent address is waited for.
const SILENCE: Duration = Duration::from_millis(600);

/// Plays this half of the story.
pub fn play(story: &mut Story<'_>) {
    let board = story.board;
    board.step("isolation", || isolation(story));
    board.pause();
    under_load(story);
    board.pause();
    board.step("first sums", || {
        let (ledger, seen) = balance(story.control(), board)?;
        story.before = ledger;
        Ok(seen)
    });
    board.pause();
    board.step("kill -9", || killed(story));
    board.pause();
}

/// What happens while `web` and `db` go on.
fn under_load(story: &mut Story<'_>) {
    let board = story.board;
    let mut stream = None;
    board.step("spoofing", || {
        let stream = stream.insert(Stream::start(&story.cast.web, story.cast.db.port.v4.into())?);
        spoofing(story, stream)
    });
    board.pause();
    let Some(stream) = stream else { return };
    board.step("bad ring", || bad_ring(story, &stream));
    board.pause();
    board.step("restart", || restart(story, &stream));
    board.pause();
    board.step("unharmed", || {
        let carried = stream.end()?;
        Ok(format!("all the while one TCP connection carried {} MB from web to db", carried.bytes / 1_000_000))
    });
}

/// Nobody in `shop` is there for `stranger`, and `db` is not its twin.
fn isolation(story: &Story<'_>) -> anyhow::Result<String> {
    let Cast { web, db, stranger, .. } = &story.cast;
    for address in web.port.addresses() {
        story.board.progress(format!("stranger pings {address}"));
        ensure!(stranger.hears_nothing_from(address, SILENCE)?, "stranger reaches {address} of another network");
    }
    let before = story.control().counters("stranger")?;
    let no_route = before.dropped("no_route");
    ensure!(no_route > 0, "no frame of stranger was dropped for no_route");
    for address in db.port.addresses() {
        web.ping(address, 3, PATIENCE)?;
    }
    let heard = story.control().counters("stranger")?.get("/transmittedPackets") - before.get("/transmittedPackets");
    ensure!(heard == 0, "stranger got {heard} frames while web pinged db, whose addresses are the same");
    Ok(format!("stranger has db's addresses in another network and reaches nobody (no_route {no_route})"))
}

/// `cache` pretends to be `db`.
fn spoofing(story: &Story<'_>, stream: &Stream) -> anyhow::Result<String> {
    let Cast { web, db, cache, .. } = &story.cast;
    stream.moves()?;
    let words = lies::refused(story.board, story.control(), cache, &db.port, &web.port)?;
    stream.moves()?;
    Ok(format!("cache pretends to be db: dropped, {words}"))
}

/// `cache` breaks its ring; its port stops, with a reason, and nobody else notices.
fn bad_ring(story: &Story<'_>, stream: &Stream) -> anyhow::Result<String> {
    let Cast { web, db, cache, stranger } = &story.cast;
    let frame = Path::new(cache.port.mac, MacAddr::ROUTER.0, cache.port.v4, web.port.v4).udp(1, 9, b"the last one");
    cache.guest()?.call(move |guest| rings::descriptor_loop(guest.nic(), &frame))??;
    let reason = story.board.wait("cache's port is stopped", PATIENCE, || {
        let port = story.control().port("cache")?;
        let faulted = port["state"] == "faulted";
        Ok(faulted.then(|| port["reason"].as_str().unwrap_or("no reason is given").to_owned()))
    })?;
    stream.moves()?;
    for member in [web, db, stranger] {
        let state = story.control().state(&member.port.name)?;
        ensure!(state == "running", "port {} is {state}", member.port.name);
    }
    ensure!(db.hears_nothing_from(cache.port.v4.into(), SILENCE)?, "cache still answers");
    Ok(format!("cache makes a descriptor loop: its port is stopped ({reason}), the others go on"))
}

/// The VM on `cache` is started again.
fn restart(story: &mut Story<'_>, stream: &Stream) -> anyhow::Result<String> {
    let port = story.cast.cache.port.clone();
    let asked = Instant::now();
    story.cast.cache.start_again(Profile::Qemu, true)?;
    story.cast.cache.settle()?;
    let came = asked.elapsed();
    for address in port.addresses() {
        story.cast.db.ping(address, 1, PATIENCE)?;
    }
    let state = story.control().state("cache")?;
    ensure!(state == "running", "port cache is {state}");
    stream.moves()?;
    Ok(format!("a new VM on cache's port has the same addresses after {}", short(came)))
}

/// The daemon is killed under load and started again.
fn killed(story: &mut Story<'_>) -> anyhow::Result<String> {
    let stream = Stream::start(&story.cast.web, story.cast.db.port.v4.into())?;
    stream.moves()?;
    story.daemon.kill()?;
    story.board.progress("the daemon is gone");
    story.board.pause();
    let asked = Instant::now();
    story.daemon.start_again(story.board)?;
    let ready = asked.elapsed();
    story.board.wait("the TCP connection goes on", PATIENCE, || Ok((stream.reconnects() > 0).then_some(())))?;
    stream.moves()?;
    let goes_on = asked.elapsed();
    for member in story.cast.members() {
        let name = member.port.name.as_str();
        story.board.wait("every port runs again", PATIENCE, || {
            Ok((story.control().state(name)? == "running").then_some(()))
        })?;
        if Port::ask(story.control(), name)? != member.port {
            bail!("port {name} has other addresses than before");
        }
    }
    for to in story.cast.cache.port.addresses() {
        story.cast.db.ping(to, 1, PATIENCE)?;
    }
    story.board.rest(Duration::from_millis(500));
    stream.moves()?;
    let carried = stream.end()?;
    let line = format!("ready again in {}, the same TCP connection goes on after {}", short(ready), short(goes_on));
    story.board.fact("kill -9", format!("{line}, {} MB in all", carried.bytes / 1_000_000));
    Ok(format!("{line}, all VMs have their addresses, none was restarted"))
}
