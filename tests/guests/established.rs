//! Connections that are there already: what a restart of the daemon and a change of policy leave of them (SEMANTICS CT1,
//! NP30, NP31).
