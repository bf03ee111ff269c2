//! Nothing: the package exists for its tests, whose dependencies the library's own tests must not have.
