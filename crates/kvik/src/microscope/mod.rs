//! The microscope: what a prompt's cache holds, head by head and token by token, as a page.
//!
//! A [`Probe`] watches a sequence while it is read and continued, and fills a [`Record`]; [`page`] turns the record into one
//! HTML file that needs nothing else.

mod page;
mod probe;
mod record;

pub use page::page;
pub use probe::Probe;
pub use record::Record;
