//! placeholder
pub mod config;
pub mod fabric {
    //! placeholder
    pub mod spec;
}
pub mod services;
