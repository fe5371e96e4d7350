"""The quantizer: embeddings in, M codes an ad out (LEADRE 3.2, appendix A.1)."""
