//! Alibaba Cloud: one method per API call, one attempt each, and the metadata service.
