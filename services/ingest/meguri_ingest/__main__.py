from meguri_ingest.app import build

if __name__ == "__main__":
    build().serve()
