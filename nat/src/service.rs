//! Services in the packet path: addresses whose connections are spread over backends (SEMANTICS §2).
//!
//! [`Services`] is what workers look an address up in: immutable, published with the plane, cheap to change one Service of.
//! Which backend a connection gets is a [`Maglev`] table's to say, or, for clients that keep theirs, [`Affinity`]'s. Afterwards the
//! connection is pinned: only when something has changed it is asked whether its backend still serves.

pub mod affinity;
pub mod hash;
pub mod maglev;
pub mod model;
pub mod table;

mod frontend;
mod group;

pub use affinity::Affinity;
pub use frontend::{Asking, Chosen, Frontend, Standing, Why};
pub use maglev::Maglev;
pub use model::{Backend, Begun, FrontendSpec, Refusal};
pub use table::{Lookup, Services, Sizes};
