//! What is broken, by what it is: workers, servers, the network, the store.

mod network;
mod servers;
mod stores;
mod workers;
