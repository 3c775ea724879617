//! The zone and what is answered from it.
