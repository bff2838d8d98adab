"""E-FLYT: scores of CLIP embeddings by a learned head (FLYT, section 3.4 and appendix C.7)."""
