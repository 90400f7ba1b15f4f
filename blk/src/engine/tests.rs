//! The contract of engines, held against each engine on each kind of file.

mod block_device;
mod contract;
mod rig;
mod ring;

use super::*;
