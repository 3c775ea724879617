//! `hostweave attach-netns`: the helper that enters a network namespace on the daemon's behalf, and nothing else.
//!
//! The daemon starts it with a socket as its standard input, on which it sends a TAP device's file descriptor back, or
//! a sentence why not. It is not for people.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Context;
use hostweave_switch::MacAddr;
use hostweave_uplink::netns::{TapRequest, run_helper};

/// Arguments of `attach-netns`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Network namespace file.
    #[arg(long, value_name = "PATH")]
    netns: PathBuf,
    /// Name of the TAP device.
    #[arg(long, value_name = "DEVICE")]
    name: String,
    /// MAC address of the device.
    #[arg(long)]
    mac: MacAddr,
    /// MTU in octets of IP packet.
    #[arg(long)]
    mtu: u16,
    /// Remove the device instead.
    #[arg(long)]
    delete: bool,
}

/// Runs the helper.
///
/// # Errors
/// When the answer cannot be sent. Everything else that goes wrong is the answer.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { netns, name, mac, mtu, delete } = args;
    let request = TapRequest { name, netns: Some(netns), mac, mtu };
    run_helper(&request, delete, std::io::stdin().as_fd())
        .context("attach-netns is started by the daemon, with a socket as its standard input")
}
