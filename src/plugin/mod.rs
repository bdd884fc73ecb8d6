//! The CNI plugin: environment and stdin in, result on stdout and exit code out.
