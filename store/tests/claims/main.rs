//! What the store claims, each claim a test.

mod crash;
mod damage;
mod dependencies;
mod faults;
mod generations;
mod golden;
mod ordered;
mod reads;
mod real;
mod strand;
mod world;
