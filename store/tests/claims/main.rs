//! What the store claims, each claim a test.

mod crash;
mod damage;
mod faults;
mod generations;
mod golden;
mod ordered;
mod reads;
mod real;
mod rests_on;
mod strand;
mod world;
