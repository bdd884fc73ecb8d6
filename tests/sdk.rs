//! Alibaba Cloud's official Python SDKs against the simulator, as an independent client.
